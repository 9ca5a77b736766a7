"""Convolution and average pooling in one kernel: what two give, whatever the tile."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import ConvCase, integers, normal

from tritonconv import engines
from tritonconv.configs import TileConfig
from tritonconv.configs.conv_pool import averaged
from tritonconv.geometry import ConvGeometry
from tritonconv.launch import packing
from tritonconv.launch.conv_pool import avg_launch
from tritonconv.launch.norm import ABSENT, Norm

f32 = torch.float32
# Rows and columns in no window; strides, dilation and groups; windows that padding lies in.
CASES = (
    (ConvCase((2, 5, 9, 10), (7, 3, 3)), (2, 2)),
    (ConvCase((1, 6, 12, 13), (8, 2, 3), stride=(1, 2), padding=(1, 2), groups=2), (1, 4)),
    (ConvCase((2, 4, 11, 8), (16, 3, 1), padding=(2, 0), dilation=(2, 1)), (4, 2)),
)
TILES = TileConfig(8, 16, 2), TileConfig(16, 8, 8)
WAYS = (("native", f32), ("native", torch.float64), ("native", torch.bfloat16), ("interpreter", f32))


def run(x, weight, bias, case, window, config, engine="native", activation=None, norm=ABSENT):
    firsts = case.geometry.firsts(window)
    launch = avg_launch(firsts, window, "ieee", activation, config, norm.eps, firsts.C)
    panels = packing.panels(weight, case.geometry, "fprop", config.BN, True)
    y = torch.empty(firsts.output, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    engines.ENGINES[engine].bind(launch)(x, panels, bias, y, *norm.vectors)
    return y


def operands(case, make, dtype):
    return [make(shape, dtype, seed=i) for i, shape in enumerate((case.input, case.weight, case.weight[:1]))]


@pytest.mark.parametrize(("engine", "dtype"), WAYS, ids=str)
@pytest.mark.parametrize(("case", "config"), list(itertools.product(CASES, TILES)), ids=str)
def test_means_of_integer_sums_are_exact(case, config, engine, dtype):
    case, window = case
    x, weight, bias = operands(case, integers, dtype)
    want = F.avg_pool2d(F.conv2d(x.double(), weight.double(), bias.double(), **case.options), window).to(dtype)
    assert torch.equal(run(x, weight, bias, case, window, config, engine), want)


@pytest.mark.parametrize("engine", ("native", "interpreter"))
def test_the_epilogue_comes_before_the_mean(engine):
    case, window = CASES[0]
    x, weight, bias = operands(case, normal, f32)
    K = bias.numel()
    mean, var, gamma, beta, slope = (torch.linspace(low, 2, K) for low in (-1, 0.5, -2, -1, -1))
    norm = Norm(mean, var, gamma, beta, 1e-3, slope)
    z = F.conv2d(x.double(), weight.double(), bias.double()).tanh()
    z = F.batch_norm(z, *(t.double() for t in (mean, var, gamma, beta)), eps=1e-3)
    want = F.avg_pool2d(F.prelu(z, slope.double()), window)
    got = run(x, weight, bias, case, window, TILES[1], engine, "tanh>prelu", norm)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_it_is_chosen_where_tiles_are_full_and_threads_share_them():
    tile = TileConfig(128, 16, 64)
    firsts = ConvGeometry(1, 6, 32, 32, 16, 5, 5).firsts((2, 2))
    assert averaged(firsts, tile, f32, 2).BM * 4 < firsts.P * firsts.Q
    assert averaged(firsts, tile, torch.float16, 2) is None
    assert averaged(firsts, tile, f32, 64) is None
    assert averaged(ConvGeometry(1, 64, 7, 7, 512, 1, 1).firsts((7, 7)), tile, f32, 2) is None
