"""max_pool2d against torch, bit by bit: values, indices, gradients, NaN, ties, infinities, layouts."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, POOL_CASES, PoolCase, integers

from tritonconv.functional import max_pool2d

OVERLAPPING = PoolCase((2, 3, 7, 8), (3, 3), (2, 1), padding=(1, 1))


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def results(function, x, case, dy=None):
    """[y, indices, dx]; without `return_indices` the same y and dx."""
    x = x.detach().requires_grad_()
    y, indices = function(x, **case.options, return_indices=True)
    dy = integers(y.shape, y.dtype, y.device, seed=1) if dy is None else dy.expand(y.shape)
    (dx,) = torch.autograd.grad(y, x, dy)
    alone = function(x, **case.options)
    assert same(alone, y)
    assert torch.equal(torch.autograd.grad(alone, x, dy)[0], dx)
    return y, indices, dx


def assert_same_results(x, case, dy=None):
    got, want = results(max_pool2d, x, case, dy), results(F.max_pool2d, x, case, dy)
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


@pytest.mark.parametrize("shape", ((2, 3, 7, 8), (2, 1, 7, 8), (2, 3, 3, 3)), ids=str)
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


def test_gradcheck_to_the_second_order(device):
    # Distinct values, further apart than gradcheck's step.
    x = torch.randperm(24, generator=torch.Generator().manual_seed(0)).double().reshape(1, 2, 4, 3).to(device)
    x.requires_grad_()

    def function(x):
        return max_pool2d(x, 3, 2, 1).square()

    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_no_gradient_of_indices_alone(device):
    x = integers(OVERLAPPING.input, torch.float32, device).requires_grad_()
    _, indices = max_pool2d(x, 2, return_indices=True)
    assert not indices.requires_grad
