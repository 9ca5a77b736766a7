"""Fully connected layers against torch: one vector as one kernel, everything else torch's own."""

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, integers, normal
from torch import nn

import tritonconv
from tritonconv import engines
from tritonconv.ops import linear as layers

SHAPES = ((1, 1), (3, 5), (8, 64), (17, 130))  # K, C: tiles that are full, and that are not


@pytest.fixture
def runs(monkeypatch):
    """The shapes that a kernel ran for."""
    seen, run = [], layers.run

    def spy(x, weight, *more):
        seen.append(tuple(weight.shape))
        return run(x, weight, *more)

    monkeypatch.setattr(layers, "run", spy)
    return seen


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("shape", SHAPES)
def test_integer_sums_are_exact(shape, bias, dtype, device, runs):
    K, C = shape
    weight, x = integers((K, C), dtype, device), integers((1, C), dtype, device, seed=1)
    b = integers((K,), dtype, device, seed=2) if bias else None
    got = layers.linear(x, weight, b, "relu")
    assert torch.equal(got, F.relu(F.linear(x.double(), weight.double(), None if b is None else b.double())).to(dtype))
    assert runs == ([shape] if device.type == "cpu" else [])


@pytest.mark.parametrize("leading", ((), (1,), (1, 1)), ids=str)
def test_any_leading_sizes_and_strides(leading, device):
    weight, x = normal((9, 33), torch.float64, device), normal((33, 2), torch.float64, device, seed=1)[:, 0]
    x = x.view(*leading, 33)
    got, want = layers.linear(x, weight, None), F.linear(x, weight)
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()


def test_gpus_are_left_to_torch_whatever_device_a_listing_has():
    weight, x = normal((3, 4), torch.float32), normal((1, 4), torch.float32)
    for target, count in (("sm_90", 0), (None, 1)):
        with engines.listing(x.device, target) as launches:
            layers.linear(x, weight, None)
        assert len(launches) == count


def test_what_torch_runs(runs):
    weight, bias, x = (normal(shape, torch.float32) for shape in ((3, 4), (3,), (1, 4)))
    for given in ((x.expand(2, 4), weight), (x, weight.t().contiguous().t())):
        torch.testing.assert_close(layers.linear(*given, bias), F.linear(*given, bias))
    with torch.autocast("cpu"):
        assert layers.linear(x, weight, bias).dtype is torch.bfloat16
    layers.linear(x, weight.requires_grad_(), bias).sum().backward()
    assert torch.equal(weight.grad, x.expand(3, 4))
    assert torch.equal(torch.func.vmap(lambda x: layers.linear(x, weight.detach(), bias))(x), F.linear(x, weight, bias))
    assert runs == []
    for bad in (normal((1, 5), torch.float32), x.double(), x.long(), normal((), torch.float32)):
        with pytest.raises(RuntimeError) as expected:
            F.linear(bad, weight.detach(), bias)
        with pytest.raises(RuntimeError) as got:
            layers.linear(bad, weight.detach(), bias)
        assert str(got.value) == str(expected.value)


def test_a_patched_classifier(runs):
    layers_ = nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(True), nn.Dropout(), nn.Linear(5, 3, False)
    model = tritonconv.patch(nn.Sequential(*layers_).double().eval())
    assert [f"{site.status} {site.pattern}" for site in tritonconv.report(model)][1:] == [
        "fused linear+relu",
        "swapped linear",
    ]
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        got = [model(x[:1]), model(x)]
    assert runs == [(5, 16), (3, 5)]
    with torch.no_grad():
        model[2].weight.mul_(2)  # nothing is kept of a weight
        twice = model(x[:1])
        want = [tritonconv.unpatch(model)(x[:1])]
        model[2].weight.mul_(0.5)
        want += [model(x[:1]), model(x)]
    for ours, theirs in zip([twice, *got], want, strict=True):
        torch.testing.assert_close(ours, theirs)
