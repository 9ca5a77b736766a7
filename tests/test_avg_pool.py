"""Average, L^p and adaptive average pooling against torch: values, gradients, layouts, NaN, corners."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, integers, normal
from tolerance import assert_bounded

from tritonconv import functional, launch
from tritonconv.functional import adaptive_avg_pool2d, avg_pool2d, lp_pool2d
from tritonconv.geometry import adaptive_geometry

# Whole windows; overlaps; windows cut by the padding's end, by the image's, by both; gaps between windows; one window.
AVERAGES = (
    ((2, 3, 6, 8), dict(kernel_size=2)),
    ((1, 17, 7, 6), dict(kernel_size=3, stride=2, padding=1)),
    ((2, 9, 7, 6), dict(kernel_size=3, stride=2, padding=1, count_include_pad=False)),
    ((2, 1, 9, 7), dict(kernel_size=(3, 2), stride=(1, 3), padding=(1, 0), ceil_mode=True)),
    ((2, 3, 9, 8), dict(kernel_size=(3, 4), stride=(2, 3), padding=(1, 2), ceil_mode=True, count_include_pad=False)),
    ((1, 2, 10, 9), dict(kernel_size=(2, 3), stride=4, ceil_mode=True)),
    ((1, 5, 8, 8), dict(kernel_size=3, stride=1, padding=1, divisor_override=-2)),
    ((2, 8, 4, 4), dict(kernel_size=4, divisor_override=4)),
    ((3, 8, 5, 7), dict(kernel_size=(5, 7))),
)
# Sizes that divide and that do not, in one axis or both; larger outputs than inputs; the input's own; one window.
NORM = "lp_pool2d"
SIZES = (1, 2, (3, 5), (9, 3), (None, 2), (10, 17), (7, 8))
ADAPTIVE = [((2, C, 7, 8), dict(output_size=size)) for C, size in zip(itertools.cycle((3, 9, 1)), SIZES, strict=False)]
NORMS = (
    ((2, 3, 6, 8), dict(norm_type=2, kernel_size=2)),
    ((1, 9, 8, 6), dict(norm_type=2.0, kernel_size=3, stride=2, ceil_mode=True)),
    ((2, 3, 7, 8), dict(norm_type=4, kernel_size=(2, 3), stride=(1, 2))),
    ((2, 3, 7, 8), dict(norm_type=1, kernel_size=2)),
    ((2, 3, 7, 8), dict(norm_type=float("inf"), kernel_size=2)),
)
CASES = [
    (name, *case)
    for name, cases in (("avg_pool2d", AVERAGES), ("adaptive_avg_pool2d", ADAPTIVE), (NORM, NORMS))
    for case in cases
]


def describe(value):
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def results(function, x, options, dy):
    """(y, dx)."""
    x = x.detach().requires_grad_()
    y = function(x, **options)
    return y, torch.autograd.grad(y, x, dy.expand(y.shape))[0]


def assert_same_results(name, x, options, dy=None):
    """Against torch's in float64. A window, and the windows that cover a pixel, have fewer than 64 terms."""
    ours, torchs = getattr(functional, name), getattr(F, name)
    like = torchs(x, **options)
    dy = integers(like.shape, x.dtype, x.device, seed=1) if dy is None else dy
    got, want = results(ours, x, options, dy), results(torchs, x.double().cpu(), options, dy.double().cpu())
    alone = ours(x, **options)
    assert torch.equal(alone.isnan(), got[0].isnan()) and torch.equal(alone.nan_to_num(), got[0].nan_to_num())
    assert got[0].stride() == like.stride() and alone.stride() == like.stride()
    for a, b in zip(got, want, strict=True):
        assert a.dtype is x.dtype
        b = b.to(a.device)
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf())
        a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
        assert_bounded(a, b, b.abs() + 1, 64)


@pytest.mark.parametrize(
    ("name", "shape", "options", "dtype"),
    [(*case, FLOATS[0]) for case in CASES]
    + [(*case, dtype) for case, dtype in zip(CASES, itertools.cycle(FLOATS[1:]), strict=False) if case[0] != NORM],
    ids=describe,
)
def test_values_and_gradients(name, shape, options, dtype, device):
    assert_same_results(name, integers(shape, dtype, device), options)


def test_means_of_multiples_are_exact(device):
    for shape, options, terms in (
        ((2, 9, 6, 8), dict(kernel_size=3, stride=1), 9),
        ((2, 3, 5, 7), dict(kernel_size=(5, 7)), 35),
        ((1, 2, 6, 6), dict(kernel_size=2, padding=1), 4),
    ):
        x = integers(shape, torch.float32, device) * terms
        y = avg_pool2d(x, **options)
        assert torch.equal(y, F.avg_pool2d(x.double(), **options).float())


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_squares_are_summed_in_a_wider_type(dtype, device):
    x = integers((2, 3, 6, 8), dtype, device) * 100
    y, exact = lp_pool2d(x, 2, 3), F.lp_pool2d(x.double(), 2, 3)
    assert_bounded(y, exact, exact, 9)


def test_norms_under_autocast(device):
    x = integers((1, 2, 4, 4), torch.bfloat16, device)
    with torch.autocast(device.type):
        y, want = lp_pool2d(x, 2, 2), F.lp_pool2d(x, 2, 2)
    assert y.dtype is want.dtype
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize("special", (float("nan"), float("-inf"), float("inf")))
@pytest.mark.parametrize("case", (1, 4, 6))
def test_special_values(case, special, device):
    shape, options = AVERAGES[case]
    x = integers(shape, torch.float32, device)
    x[0, 0, 1:4, 2:5] = special
    assert_same_results("avg_pool2d", x, options)
    assert_same_results("adaptive_avg_pool2d", x, dict(output_size=(3, 4)))
    assert_same_results("adaptive_avg_pool2d", x, dict(output_size=1))


def test_the_norm_of_zeros_has_no_gradient(device):
    x = torch.zeros(1, 2, 4, 4, device=device)
    x[0, 1, 2:, 2:] = 3
    x.requires_grad_()
    (dx,) = torch.autograd.grad(lp_pool2d(x, 2, 2).sum(), x, create_graph=True)
    assert torch.equal(dx, x.detach() / 6)
    assert torch.autograd.grad(dx.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("shape", ((2, 9, 7, 8), (2, 1, 7, 8), (1, 9, 4, 4)), ids=str)
@pytest.mark.parametrize("layout", ("nchw", "channels_last", "sliced", "unbatched"))
def test_layouts(shape, layout, device):
    x = integers(shape, torch.float32, device)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.cat((x, x), 3)[..., ::2]
    elif layout == "unbatched":
        x = x[0]
    for name, options in (
        ("avg_pool2d", dict(kernel_size=3, stride=2, padding=1)),
        ("adaptive_avg_pool2d", dict(output_size=(2, 3))),
        ("adaptive_avg_pool2d", dict(output_size=1)),
        ("lp_pool2d", dict(norm_type=2, kernel_size=2)),
    ):
        assert_same_results(name, x, options)
    assert_same_results("avg_pool2d", x, dict(kernel_size=3), torch.tensor(2.0, device=device))


SECOND_ORDER = {
    "average": lambda x: avg_pool2d(x, 3, 2, 1, True, False),
    "adaptive": lambda x: adaptive_avg_pool2d(x, (3, 2)),
    "global": lambda x: adaptive_avg_pool2d(x, 1),
    "norm": lambda x: lp_pool2d(x, 2, 2, 1),
    "fourth power": lambda x: lp_pool2d(x, 4, 2),
}


@pytest.mark.parametrize("case", SECOND_ORDER)
def test_gradcheck_to_the_second_order(case, fast_device):
    x = normal((1, 2, 4, 5), device=fast_device).requires_grad_()

    def function(x):
        return SECOND_ORDER[case](x).square()

    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_a_gradient_is_an_adjoint(device):
    for shape, output in (((2, 3, 7, 8), (3, 5)), ((1, 2, 4, 5), (9, 2))):
        geometry = adaptive_geometry(*shape, *output)
        x = normal(shape, device=device)
        y = launch.pool.avg_pool(x, geometry, "inside")
        dy = normal(y.shape, device=device, seed=1)
        dx = launch.pool.avg_pool_backward(dy, geometry, "inside")
        torch.testing.assert_close((y * dy).sum(), (x * dx).sum())


def test_large_images_have_exact_global_means(device):
    x = integers((1, 2, 40, 50), torch.float32, device) * 2000
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=memory_format)
        assert torch.equal(adaptive_avg_pool2d(x, 1), x.double().mean((2, 3), keepdim=True).float())
