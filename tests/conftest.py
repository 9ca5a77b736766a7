import pytest
import torch

from autotune import shipped
from tritonconv import choice, engines


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fills what `torch.empty` returns with NaN (integers: 111), so that memory which a kernel fails to write shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        tensor.detach().fill_(float("nan") if tensor.is_floating_point() else 111)
        return tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(params=engines.available())
def device(request):
    """The device of a test's tensors, once for each engine that can run here; kernels run on that engine."""
    with engines.use(request.param):
        yield torch.device("cuda" if request.param == "triton" else "cpu")


@pytest.fixture(params=[name for name in engines.available() if name != "interpreter"])
def fast_device(request):
    """As `device`, without the interpreter: for derivatives by differences, which call kernels hundreds of times, and
    for rounding, which is numpy's there. That the interpreter computes the same derivatives `test_operators` sees."""
    with engines.use(request.param):
        yield torch.device("cuda" if request.param == "triton" else "cpu")


@pytest.fixture(autouse=True)
def true_float32():
    """What is compared in float32 is computed in it: torch's default lets cuDNN round operands to TF32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def nothing_is_shipped(monkeypatch):
    """Tests do the same on every machine."""
    monkeypatch.setattr(shipped, "_shipped", [])


@pytest.fixture(autouse=True)
def kernels_for_small_inputs(monkeypatch):
    """Leaves no pooling to torch for its size: tests are about kernels, and small."""
    monkeypatch.setattr(choice, "_ON_CPUS", {})
