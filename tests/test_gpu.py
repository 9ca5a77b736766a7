"""Whole networks on a GPU, where there is one: patched, they give what torch gives."""

import copy

import pytest
import torch
from test_networks import SHALLOW, assert_same
from torch.nn import functional as F

import tritonconv
from benchmarks.zoo import NETWORKS

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:patch. none of the:UserWarning"),
]
DEVICE = torch.device("cuda")
TIMES = 4  # how much further from float64 ours may be than torch's own


def built(name, batch=2):
    network = NETWORKS[name]
    shape = network.small or network.input
    return network.build(width=0, **SHALLOW.get(name, {})).to(DEVICE), torch.randn(batch, *shape, device=DEVICE)


def step(model, x, dtype=None):
    """Output and gradients of a training step, under autocast if there is a dtype for it."""
    torch.manual_seed(1)  # of dropout
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        y = model.train()(x)
    F.mse_loss(y.float() if dtype else y, torch.ones_like(y, dtype=None if dtype is None else torch.float)).backward()
    return [y.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_patched_network_trains_and_infers_as_torch(name):
    model, x = built(name)
    plain, x = model.double(), x.double()
    patched = tritonconv.patch(copy.deepcopy(plain))
    for got, want in zip(step(patched, x), step(plain, x), strict=True):
        assert_same(got, want)
    with torch.no_grad():
        for memory_format in (torch.contiguous_format, torch.channels_last)[: x.dim() - 2]:
            x = x.contiguous(memory_format=memory_format)
            want = plain.eval()(x)
            for _ in range(4):
                assert_same(patched.eval()(x), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["VGG-16", "ResNet-18", "MobileNetV2", "U-Net"])
def test_autocast_is_as_near_to_float64_as_torchs(name, dtype):
    model, x = built(name, batch=8)
    exact = step(copy.deepcopy(model).double(), x.double())
    theirs = step(copy.deepcopy(model), x, dtype)
    ours = step(tritonconv.patch(copy.deepcopy(model)), x, dtype)
    for which in (slice(0, 1), slice(1, None)):  # the output, and all gradients
        got, want, truth = (torch.cat([t.double().flatten() for t in each[which]]) for each in (ours, theirs, exact))
        assert (got - truth).norm() <= TIMES * (want - truth).norm()


def test_a_cuda_graph_records_a_patched_network():
    model, x = built("ResNet-18")
    plain, patched = model.eval(), tritonconv.patch(copy.deepcopy(model).eval())
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                patched(x)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            y = patched(x)
        for seed in range(2):
            x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
            graph.replay()
            assert_same(y, plain(x))


def test_torch_compile_keeps_the_kernels():
    model, x = built("ResNet-18")
    plain, patched = model.eval(), tritonconv.patch(copy.deepcopy(model).eval())
    with torch.no_grad():
        assert_same(torch.compile(patched)(x), plain(x))
