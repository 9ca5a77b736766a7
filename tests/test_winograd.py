"""Winograd's algorithm against exact convolution: logic in float64, rounding in float32, and when it is chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import ConvCase, normal
from tolerance import UNIT

from tritonconv import configs, functional, launch, packing
from tritonconv.configs import TileConfig
from tritonconv.geometry import ConvGeometry
from tritonconv.launch.norm import Norm

# Outputs that fill tiles of 4 × 4 and that do not, less than one tile, every padding, channels that fill no block.
CASES = (
    ConvCase((2, 5, 6, 7), (6, 3, 3), padding=(1, 1)),
    ConvCase((1, 8, 10, 6), (4, 3, 3)),
    ConvCase((1, 3, 3, 5), (9, 3, 3), padding=(0, 2)),
    ConvCase((1, 1, 1, 2), (1, 3, 3), padding=(2, 1)),
    ConvCase((1, 4, 9, 17), (5, 3, 3), padding=(2, 0)),
)
# Blocks that the tiles do not fill, tiles that the channels do not, several turns of the product's loop.
SMALL = TileConfig(8, 4, 2)
WIDE = ConvCase((2, 24, 14, 15), (20, 3, 3), padding=(1, 1))


def operands(case, dtype, device):
    return [normal(shape, dtype, device, seed=i) for i, shape in enumerate((case.input, case.weight, case.weight[:1]))]


def close(got, want):
    """Equal but for float64's rounding, which any slip of the algorithm exceeds by orders of magnitude."""
    assert got.shape == want.shape
    return (got - want).abs().max() <= 1e-12 * want.abs().max()



def fprop(x, *problem, residual=None, **options):
    return launch.winograd.bind_fprop(x, *problem, **options)(x, residual)


@pytest.mark.parametrize("config", (None, SMALL), ids=("predicted", "small"))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_size_and_padding(case, config, device):
    x, weight, bias = operands(case, torch.float64, device)
    y = fprop(x, weight, bias, case.geometry, config=config)
    assert close(y, F.conv2d(x, weight, bias, padding=case.padding))
    dy = normal(y.shape, torch.float64, device, seed=3)
    dx = launch.winograd.dgrad(dy, weight, case.geometry, config=config)
    assert close(dx, torch.nn.grad.conv2d_input(x.shape, weight, dy, padding=case.padding))


@pytest.mark.parametrize("threads", (1, 8))
def test_any_number_of_programs_shares_the_work(threads, device, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight, bias = operands(CASES[0], torch.float64, device)
    y = fprop(x, weight, bias, CASES[0].geometry, config=TileConfig(2, 4, 4))  # 4 blocks, 2 tiles of K
    assert close(y, F.conv2d(x, weight, bias, padding=1))


def test_unequal_padding(device):
    case = CASES[0]
    x, weight, _ = operands(case, torch.float64, device)
    geometry = replace(case.geometry, padding=((0, 1), (2, 1)))
    y = fprop(x, weight, None, geometry)
    assert close(y, F.conv2d(F.pad(x, (2, 1, 0, 1)), weight))
    dy = normal(y.shape, torch.float64, device)
    dx = torch.nn.grad.conv2d_input((2, 5, 7, 10), weight, dy)[:, :, :-1, 2:-1]
    assert close(launch.winograd.dgrad(dy, weight, geometry), dx)


@pytest.mark.parametrize("affine", (False, True))
def test_epilogue(affine, device):
    case = CASES[0]
    x, weight, bias = operands(case, torch.float64, device)
    mean, var, gamma, beta = (normal(bias.shape, torch.float64, device, seed=i) for i in range(4, 8))
    gamma, beta = (gamma, beta) if affine else (None, None)
    norm = Norm(mean, var.square() + 0.1, gamma, beta, 1e-3)
    z = F.batch_norm(F.conv2d(x, weight, bias, padding=1), mean, norm.var, gamma, beta, eps=norm.eps)
    residual = normal(z.shape, torch.float64, device, seed=8)
    y = fprop(x, weight, bias, case.geometry, "relu", norm=norm, residual=residual)
    assert close(y, F.relu(z + residual))


# By Toom and Cook: outputs take the points' powers, inputs the polynomials that have the other points as roots.
POINTS = np.array([0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)])
OUTPUT = torch.tensor(np.hstack((POINTS ** np.arange(4)[:, None], [[0], [0], [0], [1]])))  # [outputs, points]
ROOTS = [np.delete(POINTS, i) for i in range(5)] + [POINTS]
INPUT = torch.tensor(
    np.stack([np.pad(np.poly(roots)[::-1], (0, 5 - len(roots))) for roots in ROOTS])
)  # [points, inputs]


def test_the_three_transforms_belong_together():
    x, taps = normal((6,)), normal((3,))
    got = OUTPUT @ ((INPUT @ x) * (packing._taps_at_points() @ taps))
    torch.testing.assert_close(got, F.conv1d(x[None], taps[None, None])[0], rtol=0, atol=1e-14)


def magnitude(x, weight, padding):
    """[N, K, P, Q]: the algorithm's sums over absolute values: input and weights transformed, multiplied, and back."""
    U = torch.einsum("tr,kcr->ktc", packing._FILTER.abs(), weight.abs().flatten(2))
    P, Q = (size + 2 * pad - 2 for size, pad in zip(x.shape[2:], padding, strict=True))
    x = F.pad(x.abs(), (padding[1], padding[1] + -Q % 4, padding[0], padding[0] + -P % 4))
    d = x.unfold(2, 6, 4).unfold(3, 6, 4)  # [N, C, tiles, tiles, 6, 6]
    V = torch.einsum("ai,bj,ncpqij->ncpqab", INPUT.abs(), INPUT.abs(), d).flatten(4)
    M = torch.einsum("ncpqt,ktc->nkpqt", V, U).unflatten(4, (6, 6))
    y = torch.einsum("ia,jb,nkpqab->nkpiqj", OUTPUT.abs(), OUTPUT.abs(), M).flatten(4, 5).flatten(2, 3)
    return y[:, :, :P, :Q]


def test_rounding_is_bounded_and_at_most_ten_times_that_of_a_direct_sum(device):
    """Per element 6·√n·u·magnitude (see `assert_bounded`), n = C products and 24 roundings before and after them."""
    x, weight, _ = operands(WIDE, torch.float32, device)
    wide = x.double(), weight.double()
    y = fprop(x, weight, None, WIDE.geometry)
    exact = F.conv2d(*wide, padding=1)
    error = (y.double() - exact).abs()
    bound = 6 * (WIDE.input[1] + 24) ** 0.5 * UNIT[torch.float32] * magnitude(*(t.cpu() for t in wide), (1, 1))
    assert (error.cpu() <= bound).all()
    direct = launch.conv.fprop(x, weight, None, WIDE.geometry, config=TileConfig(64, 32, 16)).double() - exact
    assert error.square().mean() <= 100 * direct.square().mean()


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_what_is_not_finite_stays_in_its_tiles(value, device):
    """Outputs are not finite where torch's are not, and maybe where their tile of 4 × 4 reads the value."""
    case = ConvCase((1, 3, 14, 14), (4, 3, 3), padding=(1, 1))
    x, weight, _ = operands(case, torch.float32, device)
    clean = fprop(x, weight, None, case.geometry)
    x[0, 1, 5, 8] = value
    y = fprop(x, weight, None, case.geometry)
    assert not y[:, :, 4:7, 7:10].isfinite().any()
    tiles = torch.zeros_like(y, dtype=torch.bool)
    tiles[:, :, 4:8, 4:12] = True  # rows 3 to 8 and columns 3 to 8, 7 to 12 of the input
    assert torch.equal(y[~tiles], clean[~tiles])


@pytest.fixture
def chosen(monkeypatch):
    """Winograd's algorithm wherever it can be."""

    def algorithm(op, geometry, *rest):
        return "gemm" if configs.winograd.as_fprop(op, geometry) is None else "winograd"

    monkeypatch.setattr(configs, "algorithm", algorithm)


@pytest.mark.parametrize("padding", (1, 3))
def test_derivatives_of_every_order(padding, chosen):
    x, weight, bias = (t.requires_grad_() for t in operands(ConvCase((1, 1, 3, 2), (2, 3, 3)), torch.float64, "cpu"))

    def conv(x, weight, bias):
        return functional.conv2d(x, weight, bias, padding=padding, activation="relu")

    assert torch.autograd.gradcheck(conv, (x, weight, bias))
    assert torch.autograd.gradgradcheck(conv, (x, weight, bias))


@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
def test_the_operator_keeps_its_layouts(memory_format, chosen, device):
    case = CASES[0]
    x, weight, bias = operands(case, torch.float64, device)
    x = x.contiguous(memory_format=memory_format)
    for input in (x, x[0]):
        got, want = (f(input, weight, bias, padding=1) for f in (functional.conv2d, F.conv2d))
        assert close(got, want)
        assert got.stride() == want.stride()


def test_statistics(chosen, device):
    x, weight, bias = operands(CASES[0], torch.float64, device)
    y, moments = launch.conv.fprop_with_moments(x, weight, bias, CASES[0].geometry)
    mean, var = launch.norm.finalize(moments, y.numel() // y.shape[1])
    want_var, want_mean = torch.var_mean(F.conv2d(x, weight, bias, padding=1), (0, 2, 3), correction=0)
    assert close(mean, want_mean)
    assert close(var, want_var)


LAYER = ConvGeometry(1, 64, 56, 56, 64, 3, 3, padding=((1, 1), (1, 1)))
f32 = torch.float32
OTHERS = (
    (replace(LAYER, stride=(2, 2)), f32, "cpu", "fprop"),
    (replace(LAYER, dilation=(2, 2)), f32, "cpu", "fprop"),
    (replace(LAYER, groups=2), f32, "cpu", "fprop"),
    (replace(LAYER, S=1), f32, "cpu", "fprop"),
    (replace(LAYER, C=3), f32, "cpu", "fprop"),
    (replace(LAYER, padding=((3, 3), (1, 1))), f32, "cpu", "dgrad"),
    (LAYER, torch.float64, "cpu", "fprop"),
    (LAYER, torch.bfloat16, "cpu", "fprop"),
    (LAYER, f32, "sm_90", "fprop"),
    (LAYER, f32, "interpreter", "fprop"),
)


def test_a_layer_for_which_it_is_chosen():
    for kept in (False, True):
        assert configs.algorithm("fprop", LAYER, f32, "cpu", kept) == "winograd"
        assert configs.algorithm("dgrad", LAYER, f32, "cpu", kept) == "winograd"


@pytest.mark.parametrize(("geometry", "dtype", "target", "op"), OTHERS, ids=str)
def test_layers_for_which_it_is_not(geometry, dtype, target, op):
    assert configs.algorithm(op, geometry, dtype, target, True) == "gemm"


def test_a_chosen_layer_is_computed_by_it():
    x, weight = (normal(shape, f32) for shape in ((1, 64, 12, 12), (64, 64, 3, 3)))
    geometry = replace(LAYER, H=12, W=12)
    algorithm = configs.algorithm("fprop", geometry, f32, "cpu", True)
    assert algorithm == "winograd"
    got = functional.conv2d(x, weight, padding=1)
    assert torch.equal(got, fprop(x, weight, None, geometry).contiguous())
