"""Winograd's algorithm in one dimension: logic in float64, rounding in the others, and when it is chosen."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import normal

from tritonconv import configs, functional, launch
from tritonconv.configs import TileConfig
from tritonconv.geometry import RowGeometry
from tritonconv.launch.norm import Norm

SMALL = TileConfig(4, 8, 2, OUT=4)  # blocks and tiles that are not full, several turns of the product's loop
# N, C, W, K, padding before and after, dilation: one block and several, within one phase and over several, dilations
# that blocks are made of, that are made of blocks, and neither; outputs fewer than a tile's.
CASES = (
    (2, 5, 70, 6, (1, 1), 1),
    (1, 8, 9, 3, (2, 0), 1),
    (1, 3, 40, 4, (0, 0), 2),
    (2, 4, 61, 5, (8, 0), 4),
    (1, 6, 50, 4, (3, 3), 3),
    (1, 2, 150, 9, (32, 0), 16),
    (1, 3, 90, 2, (0, 60), 30),
    (1, 1, 2, 1, (2, 1), 1),
)


def geometry_of(N, C, W, K, padding, dilation):
    return RowGeometry(N, C, 1, W, K, 1, 3, padding=((0, 0), padding), dilation=(1, dilation))


def conv(x, weight, bias, g):
    return F.conv1d(F.pad(x[:, :, 0], g.padding[1]), weight, bias, dilation=g.dilation[1]).unsqueeze(2)


def operands(g, dtype, device):
    return [normal(shape, dtype, device, seed=i) for i, shape in enumerate((g.input, (g.K, g.C, 3), (g.K,)))]


def close(got, want):
    """Equal but for float64's rounding, which any slip of the algorithm exceeds by orders of magnitude."""
    assert got.shape == want.shape
    return (got - want).abs().max() <= 1e-12 * want.abs().max()


def fprop(x, *problem, residual=None, **options):
    return launch.conv1d_winograd.bind_fprop(x, *problem, **options)(x, residual)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_size_padding_and_dilation(case, device):
    g = geometry_of(*case)
    x, weight, bias = operands(g, torch.float64, device)
    y = fprop(x, weight, bias, g, config=SMALL)
    assert close(y, conv(x, weight, bias, g))
    dy = normal(y.shape, torch.float64, device, seed=3)
    if configs.winograd.as_fprop("conv1d_dgrad", g) is None:  # a border wider than the window's reach
        return
    dx = launch.conv1d_winograd.dgrad(dy, weight, None, g, config=SMALL, keep_pack=False)
    leaf = x.clone().requires_grad_()
    assert close(dx, torch.autograd.grad(conv(leaf, weight, bias, g), leaf, dy)[0])


@pytest.mark.parametrize("threads", (1, 16))
def test_any_number_of_programs_shares_the_work(threads, device, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    g = geometry_of(*CASES[0])
    x, weight, bias = operands(g, torch.float64, device)
    assert close(fprop(x, weight, bias, g, config=replace(SMALL, BM=2)), conv(x, weight, bias, g))


@pytest.mark.parametrize("affine", (False, True))
def test_epilogue(affine, device):
    g = geometry_of(*CASES[3])
    x, weight, bias = operands(g, torch.float64, device)
    mean, var, gamma, beta = (normal(bias.shape, torch.float64, device, seed=i) for i in range(4, 8))
    gamma, beta = (gamma, beta) if affine else (None, None)
    norm = Norm(mean, var.square() + 0.1, gamma, beta, 1e-3)
    z = F.batch_norm(conv(x, weight, bias, g).tanh(), mean, norm.var, gamma, beta, eps=norm.eps)
    residual = normal(z.shape, torch.float64, device, seed=8)
    y = fprop(x, weight, bias, g, "tanh>relu", config=SMALL, norm=norm, residual=residual)
    assert close(y, F.relu(z + residual))


LAYER = geometry_of(1, 128, 1024, 128, (32, 0), 16)


@pytest.mark.parametrize("config", configs.space("conv1d_winograd", LAYER, torch.float32, "cpu"), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_rounding_of_every_config(config, dtype):
    x, weight, bias = operands(LAYER, dtype, "cpu")
    got = fprop(x, weight, bias, LAYER, config=config)
    exact, magnitude = (
        conv(*(f(t.double()) for t in (x, weight, bias)), LAYER) for f in (torch.Tensor.clone, torch.abs)
    )
    # Of the sums of magnitudes; the transforms lose a few digits more than a sum does.
    error, eps = (got.double() - exact).abs(), 8 * torch.finfo(torch.float32).eps
    assert (error <= eps * magnitude + torch.finfo(dtype).eps * exact.abs()).all()


@pytest.fixture
def chosen(monkeypatch):
    """Winograd's algorithm wherever it can be."""

    def algorithm(op, geometry, *rest):
        return "gemm" if configs.winograd.as_fprop(op, geometry) is None else "winograd"

    launch.common.forget()
    monkeypatch.setattr(launch.conv, "by_winograd", lambda op, x, g, config: algorithm(op, g) == "winograd")


def test_derivatives_of_every_order(chosen):
    x, weight, bias = (normal(shape, torch.float64).requires_grad_() for shape in ((1, 5, 9), (6, 5, 3), (6,)))

    def causal(x, weight, bias):
        return functional.causal_conv1d(x, weight, bias, dilation=2, activation="tanh")

    assert torch.autograd.gradcheck(causal, (x, weight, bias))
    assert torch.autograd.gradgradcheck(causal, (x, weight, bias))


def test_statistics_of_a_norm_in_training_are_those_of_the_product(chosen):
    x, weight = normal((2, 5, 30), torch.float64), normal((6, 5, 3), torch.float64)
    mean, var = (torch.zeros(6, dtype=torch.float64) for _ in range(2))
    got = functional.conv1d_batch_norm(x, weight, None, mean, var, training=True)
    assert close(got, F.batch_norm(F.conv1d(x, weight), None, None, training=True))


def test_where_it_is_chosen():
    for op in ("conv1d_fprop", "conv1d_dgrad"):
        for dtype in (torch.float32, torch.bfloat16):
            assert configs.algorithm(op, LAYER, dtype, "cpu") == "winograd"
        for geometry in (
            replace(LAYER, S=5),
            replace(LAYER, groups=2),
            replace(LAYER, C=8),
            replace(LAYER, W=32),  # most of a tile's outputs would not exist
        ):
            assert configs.algorithm(op, geometry, torch.float32, "cpu") == "gemm"
        assert configs.algorithm(op, LAYER, torch.float64, "cpu") == "gemm"
        assert configs.algorithm(op, LAYER, torch.float32, "interpreter") == "gemm"
        assert configs.algorithm(op, LAYER, torch.float32, "sm_90") == "gemm"
    assert configs.algorithm("conv1d_wgrad", LAYER, torch.float32, "cpu") == "gemm"


def test_a_chosen_layer_is_computed_by_it():
    x, weight, _ = operands(LAYER, torch.float32, "cpu")
    got = functional.causal_conv1d(x[:, :, 0], weight, dilation=16)
    assert torch.equal(got, fprop(x, weight, None, LAYER).squeeze(2))
