"""Max-pooling, adaptive or not, and unpooling against torch, bit by bit: values, indices, gradients, NaN, ties,
infinities, layouts."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, POOL_CASES, PoolCase, integers

from tritonconv.functional import adaptive_max_pool2d, max_pool2d, max_unpool2d

OVERLAPPING = PoolCase((2, 3, 7, 8), (3, 3), (2, 1), padding=(1, 1))


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def results(function, x, options, dy=None):
    """[y, indices, dx]; without `return_indices` the same y and dx."""
    x = x.detach().requires_grad_()
    y, indices = function(x, **options, return_indices=True)
    dy = integers(y.shape, y.dtype, y.device, seed=1) if dy is None else dy.expand(y.shape)
    (dx,) = torch.autograd.grad(y, x, dy)
    alone = function(x, **options)
    assert same(alone, y)
    assert torch.equal(torch.autograd.grad(alone, x, dy)[0], dx)
    return y, indices, dx


def assert_same_results(x, case, dy=None, functions=(max_pool2d, F.max_pool2d)):
    options = case.options if isinstance(case, PoolCase) else case
    got, want = (results(function, x, options, dy) for function in functions)
    for name, a, b in zip(("y", "indices", "dx"), got, want, strict=True):
        assert same(a, b), name
        assert a.dtype is b.dtype
    assert [a.stride() for a in got[:2]] == [b.stride() for b in want[:2]]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, FLOATS[0]) for case in POOL_CASES] + list(zip(POOL_CASES, itertools.cycle(FLOATS[1:]), strict=False)),
    ids=str,
)
def test_values_indices_and_gradients(case, dtype, device):
    # Few distinct integers: most windows hold ties.
    assert_same_results(integers(case.input, dtype, device), case)


@pytest.mark.parametrize("special", (float("nan"), float("-inf"), float("inf")))
def test_special_values(special, device):
    x = integers(OVERLAPPING.input, torch.float32, device)
    x[0, 0] = special  # whole windows
    x[0, 1, 2:4, 2:5] = special  # neighbours: the last NaN of a window wins
    x[1, 2, ::3, ::2] = special
    assert_same_results(x, OVERLAPPING)


@pytest.mark.parametrize("shape", ((2, 3, 7, 8), (2, 9, 7, 8), (2, 1, 7, 8), (2, 3, 3, 3)), ids=str)
@pytest.mark.parametrize("layout", ("nchw", "channels_last", "sliced"))
def test_layouts(shape, layout, device):
    x = integers(shape, torch.float32, device)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.cat((x, x), 3)[..., ::2]
    assert_same_results(x, PoolCase(shape, (3, 3), (2, 1)))


def test_expanded_gradient_and_unbatched_input(device):
    x = integers(OVERLAPPING.input[1:], torch.float32, device)
    assert_same_results(x, OVERLAPPING, torch.tensor(2.0, device=device))


@pytest.mark.parametrize("stride", (None, 1, [2, 1]))
def test_stride_argument(stride, device):
    x = integers(OVERLAPPING.input, torch.float32, device)
    assert torch.equal(max_pool2d(x, 3, stride), F.max_pool2d(x, 3, stride))


def test_gradcheck_to_the_second_order(fast_device):
    # Distinct values, further apart than gradcheck's step.
    x = torch.randperm(24, generator=torch.Generator().manual_seed(0)).double().reshape(1, 2, 4, 3).to(fast_device)
    x.requires_grad_()

    def function(x):
        return max_pool2d(x, 3, 2, 1).square()

    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_no_gradient_of_indices_alone(device):
    x = integers(OVERLAPPING.input, torch.float32, device).requires_grad_()
    _, indices = max_pool2d(x, 2, return_indices=True)
    assert not indices.requires_grad


ADAPTIVE = (adaptive_max_pool2d, F.adaptive_max_pool2d)
# Sizes that divide and that do not, in one axis or both; larger outputs than inputs; the input's own; one window.
SIZES = (1, 2, (3, 5), (9, 3), (None, 2), (10, 17), (7, 8))


@pytest.mark.parametrize(("size", "dtype"), list(zip(SIZES, itertools.cycle(FLOATS), strict=False)), ids=str)
@pytest.mark.parametrize("channels", (3, 9))
def test_adaptive_pooling(size, dtype, channels, device):
    x = integers((2, channels, 7, 8), dtype, device)
    assert_same_results(x, {"output_size": size}, functions=ADAPTIVE)
    assert_same_results(x[0], {"output_size": size}, functions=ADAPTIVE)
    x[0, 0, 2:4, 1:6] = float("nan")
    x[1, 1] = float("-inf")
    assert_same_results(x.contiguous(memory_format=torch.channels_last), {"output_size": size}, functions=ADAPTIVE)


UNPOOLINGS = (
    dict(kernel_size=2),
    dict(kernel_size=2, output_size=(7, 9)),
    dict(kernel_size=(2, 2), stride=[2, 2], padding=0, output_size=(2, 9, 7, 9)),
    dict(kernel_size=3, stride=2, padding=1, output_size=torch.Size((7, 8))),
)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", ("nchw", "channels_last", "unbatched", "mixed"))
def test_unpooling(layout, dtype, device):
    for options in UNPOOLINGS:
        window = {name: value for name, value in options.items() if name != "output_size"}
        x, indices = F.max_pool2d(integers((2, 9, 7, 8), torch.float32), **window, return_indices=True)
        if layout != "nchw":
            indices = indices.contiguous(memory_format=torch.channels_last)
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        if layout == "unbatched":
            x, indices = x[1], indices[1]
        x, indices = x.to(device, dtype).requires_grad_(), indices.to(device)
        got, want = (unpool(x, indices, **options) for unpool in (max_unpool2d, F.max_unpool2d))
        assert torch.equal(got, want)
        # On GPUs torch unpools into NCHW memory always.
        assert layout == "mixed" or x.is_cuda or got.stride() == want.stride()
        dy = integers(want.shape, dtype, device, seed=1)
        assert torch.equal(*(torch.autograd.grad(y, x, dy)[0] for y in (got, want)))
        with torch.no_grad():
            assert torch.equal(max_unpool2d(x, indices, **options), want)


def test_unpooling_leaves_one_value_where_indices_repeat(device):
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], device=device)
    y = max_unpool2d(x, torch.zeros_like(x, dtype=torch.int64), 2)
    assert y.flatten()[0] in x
    assert torch.count_nonzero(y) == 1


@pytest.mark.parametrize("case", ("adaptive", "unpooling"))
def test_other_gradients_to_the_second_order(case, fast_device):
    x = torch.randperm(30, generator=torch.Generator().manual_seed(0)).double().reshape(1, 2, 3, 5).to(fast_device)
    indices = torch.arange(15, device=fast_device).mul(4).reshape(1, 1, 3, 5).repeat(1, 2, 1, 1)
    function = {
        "adaptive": lambda x: adaptive_max_pool2d(x, (2, 3)).square(),
        "unpooling": lambda x: max_unpool2d(x, indices, 2).square(),
    }[case]
    assert torch.autograd.gradcheck(function, x.requires_grad_(), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)
