"""Winograd's algorithm against exact convolution: logic in float64, rounding in the others."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import ConvCase, normal
from tolerance import assert_bounded

from tritonconv import configs, engines, functional, launch
from tritonconv.configs import TileConfig
from tritonconv.cpu.target import Caches
from tritonconv.geometry import ConvGeometry
from tritonconv.launch.norm import Norm

# Outputs that fill tiles and that do not, less than one tile, every padding, channels that fill no block, dilations
# whose phases are unequal, and more of them than pixels.
CASES = (
    ConvCase((2, 5, 6, 7), (6, 3, 3), padding=(1, 1)),
    ConvCase((1, 8, 10, 6), (4, 3, 3)),
    ConvCase((1, 3, 3, 5), (9, 3, 3), padding=(0, 2)),
    ConvCase((1, 1, 1, 2), (1, 3, 3), padding=(2, 1)),
    ConvCase((1, 4, 9, 17), (5, 3, 3), padding=(2, 0)),
    ConvCase((2, 3, 13, 9), (5, 3, 3), padding=(2, 3), dilation=(2, 3)),
    ConvCase((1, 2, 5, 20), (3, 3, 3), padding=(8, 1), dilation=(8, 1)),
)
FIVES = (
    ConvCase((2, 5, 6, 7), (6, 5, 5), padding=(2, 2)),
    ConvCase((1, 3, 9, 14), (4, 5, 5)),
    ConvCase((1, 2, 11, 8), (3, 5, 5), padding=(4, 1), dilation=(2, 1)),
)
# Of four phases: even sizes and odd ones, rows and columns that no window reaches, every padding.
FOURS = (
    ConvCase((2, 5, 8, 9), (6, 4, 4), stride=(2, 2), padding=(1, 1)),
    ConvCase((1, 3, 9, 12), (5, 4, 4), stride=(2, 2)),
    ConvCase((1, 4, 5, 26), (9, 4, 4), stride=(2, 2), padding=(2, 3)),
    ConvCase((1, 1, 1, 2), (1, 4, 4), stride=(2, 2), padding=(3, 1)),
    ConvCase((1, 2, 9, 20), (4, 5, 5), stride=(2, 2), padding=(2, 3)),
)
LEAST = 16 if "triton" in engines.available() else 2  # of a product on a GPU
OUTS = 4, 2  # outputs of a tile along an axis
TILED = [*((case, 4) for case in CASES + FOURS), *((case, 2) for case in (CASES[0], CASES[5], FOURS[0], FOURS[-1]))]
FILTERS = (4, 3), (2, 3), (2, 5), (4, 2), (2, 2)  # and taps
PHASES = {2: 2}  # along an axis, of a window whose phases have so many taps; of other windows one


def small(OUT):
    """Blocks that the tiles do not fill, tiles that the channels do not, several turns of the product's loop."""
    return TileConfig(8, 4, LEAST, OUT=OUT)


WIDE = ConvCase((2, 24, 14, 15), (20, 3, 3), padding=(1, 1))


def operands(case, dtype, device):
    return [normal(shape, dtype, device, seed=i) for i, shape in enumerate((case.input, case.weight, case.weight[:1]))]


def close(got, want):
    """Equal but for float64's rounding, which any slip of the algorithm exceeds by orders of magnitude."""
    assert got.shape == want.shape
    return (got - want).abs().max() <= 1e-12 * want.abs().max()


def conv(x, weight, bias, case):
    return F.conv2d(x, weight, bias, **case.options)


def fprop(x, *problem, residual=None, **options):
    return launch.winograd.bind_fprop(x, *problem, **options)(x, residual)


@pytest.mark.parametrize(("case", "OUT"), [*TILED, *((case, 2) for case in FIVES)], ids=str)
def test_every_size_padding_and_dilation(case, OUT, device):
    x, weight, bias = operands(case, torch.float64, device)
    y = fprop(x, weight, bias, case.geometry, config=small(OUT))
    assert close(y, conv(x, weight, bias, case))
    dy = normal(y.shape, torch.float64, device, seed=3)
    dx = launch.winograd.dgrad(dy, weight, None, case.geometry, config=small(OUT))
    assert close(dx, torch.nn.grad.conv2d_input(x.shape, weight, dy, **case.options))


@pytest.mark.parametrize("case", (CASES[0], CASES[3], FOURS[0]), ids=str)
def test_filters_that_come_from_memory(case, device, monkeypatch):
    """They are asked for while others are multiplied, here in one pass over the rows of the tiles, or in several."""
    monkeypatch.setattr(launch.winograd, "caches", lambda: Caches(first=0, second=0, last=0))
    x, weight, bias = operands(case, torch.float64, device)
    for BM in (16, 64):
        y = fprop(x, weight, bias, case.geometry, config=replace(small(4), BM=BM))
        assert close(y, conv(x, weight, bias, case))


@pytest.mark.parametrize(
    ("case", "OUT", "memory_format"),
    [
        *((*tiled, torch.channels_last) for tiled in TILED),
        *itertools.product((CASES[0], FOURS[0]), OUTS, (torch.contiguous_format,)),
    ],
    ids=str,
)
def test_gradients_of_weights(case, OUT, memory_format, device, monkeypatch):
    """Some in several stretches of tiles, whose last is not full."""
    monkeypatch.setattr(launch.winograd_wgrad, "caches", lambda: Caches(first=0, second=0, last=0))
    x, weight, _ = operands(case, torch.float64, device)
    dy = normal(conv(x, weight, None, case).shape, torch.float64, device, seed=3)
    dw = launch.winograd_wgrad.wgrad(dy, x, case.geometry, memory_format, small(OUT))
    assert close(dw, torch.nn.grad.conv2d_weight(x, weight.shape, dy, **case.options))
    assert dw.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("threads", (1, 8))
@pytest.mark.parametrize("case", (CASES[0], FOURS[0]), ids=str)
def test_any_number_of_programs_shares_the_work(case, threads, device, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight, bias = operands(case, torch.float64, device)
    config = TileConfig(2, 4, max(4, LEAST), OUT=4)  # several blocks, 2 tiles of K
    y = fprop(x, weight, bias, case.geometry, config=config)
    assert close(y, conv(x, weight, bias, case))
    dx = launch.winograd.dgrad(y, weight, None, case.geometry, config=config)
    assert close(dx, torch.nn.grad.conv2d_input(x.shape, weight, y, **case.options))


@pytest.mark.parametrize("case", (CASES[0], FOURS[0]), ids=str)
def test_unequal_padding(case, device):
    x, weight, _ = operands(case, torch.float64, device)
    geometry = replace(case.geometry, padding=((0, 1), (2, 1)))
    y, (N, C, H, W) = fprop(x, weight, None, geometry), x.shape
    assert close(y, F.conv2d(F.pad(x, (2, 1, 0, 1)), weight, stride=case.stride))
    dy = normal(y.shape, torch.float64, device)
    dx = torch.nn.grad.conv2d_input((N, C, H + 1, W + 3), weight, dy, stride=case.stride)[:, :, :-1, 2:-1]
    assert close(launch.winograd.dgrad(dy, weight, None, geometry), dx)


@pytest.mark.parametrize(("affine", "case"), ((False, CASES[0]), (True, CASES[5]), (True, FOURS[0])), ids=str)
def test_epilogue(affine, case, device):
    x, weight, bias = operands(case, torch.float64, device)
    mean, var, gamma, beta = (normal(bias.shape, torch.float64, device, seed=i) for i in range(4, 8))
    gamma, beta = (gamma, beta) if affine else (None, None)
    norm = Norm(mean, var.square() + 0.1, gamma, beta, 1e-3)
    z = F.batch_norm(conv(x, weight, bias, case), mean, norm.var, gamma, beta, eps=norm.eps)
    residual = normal(z.shape, torch.float64, device, seed=8)
    y = fprop(x, weight, bias, case.geometry, "relu", norm=norm, residual=residual)
    assert close(y, F.relu(z + residual))


@pytest.mark.parametrize(("case", "slack"), ((CASES[0], (0, 0)), (FOURS[0], (0, 1))), ids=str)
def test_epilogue_of_transposed_convolution(case, slack, device):
    x, weight, _ = operands(case, torch.float64, device)
    dy = normal(conv(x, weight, None, case).shape, torch.float64, device, seed=3)
    bias, mean, var, gamma, beta = (normal(x.shape[1:2], torch.float64, device, seed=i) for i in range(4, 9))
    norm = Norm(mean, var.square() + 0.1, gamma, beta, 1e-3)
    got = launch.winograd.dgrad(dy, weight, bias, case.geometry, "relu", norm=norm)
    z = F.conv_transpose2d(dy, weight, bias, case.stride, case.padding, slack)
    assert close(got, F.relu(F.batch_norm(z, mean, norm.var, gamma, beta, eps=norm.eps)))


def test_weights_in_training_share_memory_but_not_values():
    """Their filters lie in scratch memory, a thread's own, until its next launch."""
    case = CASES[0]
    x, *weights = (normal(shape, seed=i) for i, shape in enumerate((case.input, *[case.weight] * 2)))
    bound = [launch.winograd.bind_fprop(x, w, None, case.geometry, keep_pack=False, config=small(4)) for w in weights]
    want = [F.conv2d(x, w, padding=1) for w in weights]
    for i in (0, 1, 0):
        assert close(bound[i](x, None), want[i])
    with ThreadPoolExecutor(2) as pool:
        for i, y in zip([0, 1] * 50, pool.map(lambda i: bound[i](x, None), [0, 1] * 50), strict=True):
            assert close(y, want[i])


# By Toom and Cook: outputs take the points' powers, inputs the polynomials whose roots are the other points, taps the
# points' powers over the product of their distances to the others; ∞ takes what is of the highest power.
PAIRS = 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)
POINTS = {6: (0, *PAIRS), 5: PAIRS, 4: (0, 1, -1), 3: (0, -1)}


def transforms(OUT, R):
    """[points, inputs], [points, taps], [outputs, points]"""
    inputs = OUT + R - 1
    points = np.array(POINTS[inputs])
    others = [np.delete(points, i) for i in range(len(points))]
    rows = [np.pad(np.poly(roots)[::-1], (0, inputs - 1 - len(roots))) for roots in (*others, points)]
    scales = np.array([np.prod(p - rest) for p, rest in zip(points, others, strict=True)])
    taps = np.vstack((points[:, None] ** np.arange(R) / scales[:, None], np.eye(R)[-1:]))
    outputs = np.hstack((points ** np.arange(OUT)[:, None], np.eye(OUT)[:, -1:]))
    return tuple(torch.tensor(m, dtype=torch.float64) for m in (np.stack(rows), taps, outputs))


def test_transforms():
    for OUT, R in FILTERS:
        inputs, taps, outputs = transforms(OUT, R)
        x, w = normal((OUT + R - 1,)), normal((R,))
        torch.testing.assert_close(outputs @ ((inputs @ x) * (taps @ w)), F.conv1d(x[None], w[None, None])[0])


@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize("op", ("fprop", "dgrad"))
@pytest.mark.parametrize(("OUT", "R"), FILTERS)
def test_filters(OUT, R, op, memory_format, device):
    """[phases of outputs × tiles of 4 columns, points, phases of inputs × reduced channels × 4 and a gap]"""
    count = PHASES.get(R, 1)
    side = count * R
    weight = normal((9, 5, side, side), device=device).contiguous(memory_format=memory_format)
    _, taps, _ = (m.to(device) for m in transforms(OUT, R))
    w = weight if op == "fprop" else weight.transpose(0, 1).flip(2, 3)
    w = w.unflatten(3, (R, count)).unflatten(2, (R, count))  # [k, c, r, phase, s, phase]
    want = F.pad(torch.einsum("ir,js,kcrasb->abijck", taps, taps, w).flatten(2, 3), (0, -len(w) % 4))
    want = want.unflatten(4, (-1, 4)).permute(0, 1, 4, 2, 3, 5).flatten(0, 1)  # [phase, tile, point, c, 4]
    want = want.permute(1, 2, 0, 3, 4).flatten(2) if op == "fprop" else want.flatten(0, 1).flatten(2)
    panels, points, size = want.shape
    geometry = ConvGeometry(1, 5, 8, 8, 9, side, side, (count, count))
    problem = configs.winograd.as_fprop(op, geometry)
    for keep in (False, True):
        got = launch.winograd._filters(weight, op, problem, OUT, 4, keep)().flatten()
        got = got[: panels * points * (size + launch.winograd.GAP)].view(panels, points, -1)
        assert close(got[..., :size], want)


def magnitude(x, weight, padding, OUT, count):
    """[N, K, P, Q]: the algorithm's sums over absolute values: input and weights transformed, multiplied, and back.

    Phases, `count` along an axis, are summed as channels are.
    """
    x = F.pad(x.abs(), (padding[1],) * 2 + (padding[0],) * 2)
    x = x[:, :, : x.shape[2] // count * count, : x.shape[3] // count * count]  # no window reaches the rest
    x, weight = (F.pixel_unshuffle(t, count) for t in (x, weight.abs()))
    R = weight.shape[-1]
    inputs, taps, outputs = (m.abs() for m in transforms(OUT, R))
    U = torch.einsum("ar,bs,kcrs->kcab", taps, taps, weight)
    P, Q = (size - (R - 1) for size in x.shape[2:])
    x = F.pad(x, (0, -Q % OUT, 0, -P % OUT))
    d = x.unfold(2, OUT + R - 1, OUT).unfold(3, OUT + R - 1, OUT)  # [N, C, tiles, tiles, inputs, inputs]
    M = torch.einsum("ai,bj,ncpqij,kcab->nkpqab", inputs, inputs, d, U)
    y = torch.einsum("ia,jb,nkpqab->nkpiqj", outputs, outputs, M).flatten(4, 5).flatten(2, 3)
    return y[:, :, :P, :Q]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("OUT", "R"), FILTERS)
def test_rounding_is_bounded(OUT, R, dtype, fast_device):
    """As `assert_bounded` says, of sums of C products with 24 roundings before and after them."""
    count = PHASES.get(R, 1)
    side = count * R
    case = replace(WIDE, kernel=(20, side, side), stride=(count, count), padding=(side // 2, side // 2))
    x, weight, _ = operands(case, dtype, fast_device)
    wide = x.double(), weight.double()
    y = fprop(x, weight, None, case.geometry, config=replace(small(OUT), BN=16, BK=max(8, LEAST)))
    exact = conv(*wide, None, case)
    bound = magnitude(*(t.cpu() for t in wide), case.padding, OUT, count).to(fast_device)
    assert_bounded(y, exact, bound, count**2 * case.input[1] + 24)
    direct = launch.conv.fprop(x, weight, None, case.geometry, config=TileConfig(64, 32, 16))
    # In float32 at most ten times, twice for F(2, 3) and F(2, 2), that of a direct sum; half types round the result,
    # which is more.
    factor = (2 if OUT == 2 and R <= 3 else 10) if dtype is torch.float32 else 1.1
    error, least = ((t.double() - exact).square().mean().sqrt() for t in (y, direct))
    assert error <= factor * least


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_what_is_not_finite_stays_in_its_tiles(value, device):
    """Outputs are not finite where torch's are not, and maybe where their tile of 4 × 4 reads the value."""
    case = ConvCase((1, 3, 14, 14), (4, 3, 3), padding=(1, 1))
    x, weight, _ = operands(case, torch.float32, device)
    clean = fprop(x, weight, None, case.geometry, config=small(4))
    x[0, 1, 5, 8] = value
    y = fprop(x, weight, None, case.geometry, config=small(4))
    assert not y[:, :, 4:7, 7:10].isfinite().any()
    tiles = torch.zeros_like(y, dtype=torch.bool)
    tiles[:, :, 4:8, 4:12] = True  # rows 3 to 8 and columns 3 to 8, 7 to 12 of the input
    assert torch.equal(y[~tiles], clean[~tiles])


@pytest.fixture
def chosen(monkeypatch):
    """Winograd's algorithm wherever it can be."""

    def algorithm(op, geometry, *rest):
        taken = configs.winograd.takes(op, geometry) and (op == "wgrad" or configs.winograd.as_fprop(op, geometry))
        return "winograd" if taken else "gemm"

    monkeypatch.setattr(configs, "algorithm", algorithm)


DERIVED = (
    ConvCase((1, 1, 3, 4), (2, 3, 3), padding=(1, 1)),
    ConvCase((1, 1, 3, 4), (2, 3, 3), padding=(3, 3)),
    ConvCase((1, 1, 3, 4), (2, 3, 3), padding=(2, 2), dilation=(2, 2)),
    ConvCase((1, 1, 5, 4), (2, 4, 4), padding=(1, 1), stride=(2, 2)),
)


@pytest.mark.parametrize("case", DERIVED, ids=str)
def test_derivatives_of_every_order(case, chosen):
    x, weight, bias = (t.requires_grad_() for t in operands(case, torch.float64, "cpu"))

    def conv(x, weight, bias):
        return functional.conv2d(x, weight, bias, **case.options, activation="relu")

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


@pytest.mark.parametrize(("case", "OUT"), ((CASES[0], 2), (CASES[-2], 4), (CASES[-1], 2), (FOURS[1], 4)), ids=str)
def test_statistics(case, OUT, device):
    """Blocks have unequal numbers of outputs, some none; the mean is far from zero."""
    x, weight, bias = operands(case, torch.float64, device)
    config = replace(small(OUT), BM=2)
    y, moments = launch.winograd.fprop_with_moments(x, weight, bias + 1e4, case.geometry, config=config)
    mean, var = launch.norm.finalize(moments, y.numel() // y.shape[1])
    want = conv(x, weight, bias, case)
    want_var, want_mean = torch.var_mean(want, (0, 2, 3), correction=0)
    assert (y - 1e4 - want).abs().max() < 1e-10
    assert (mean - 1e4 - want_mean).abs().max() < 1e-10
    assert (var - want_var).abs().max() <= 1e-10 * want_var.max()
