"""Expansion and depthwise convolution in one kernel: what two give, whatever the bands."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import ConvCase, integers, normal

from tritonconv import engines
from tritonconv.configs import expansion as configs
from tritonconv.configs.expansion import BandConfig
from tritonconv.cpu.target import caches
from tritonconv.launch import conv, depthwise, expansion, packing
from tritonconv.launch.expansion import Epilogue
from tritonconv.launch.norm import ABSENT, Norm

f32 = torch.float32
# Tiles that channels do not fill, more images than one, strides, dilation, padding wider than the band, columns and
# rows that no window sees.
CASES = (
    ConvCase((2, 17, 7, 9), (17, 3, 3), padding=(1, 1), groups=17),
    ConvCase((1, 16, 9, 20), (16, 3, 5), stride=(2, 2), padding=(1, 2), groups=16),
    ConvCase((1, 8, 8, 7), (8, 2, 3), stride=(1, 3), padding=(0, 0), dilation=(3, 2), groups=8),
    ConvCase((1, 32, 3, 4), (32, 3, 3), padding=(4, 3), groups=32),
)
BANDS = (BandConfig(1, 16, 16, 4, 4), BandConfig(3, 32, 8, 8, 16), BandConfig(16, 8, 32, 2, 2))


NONE = None, None


def run(x, expand, window, geometry, config, engine="native", norms=(ABSENT, ABSENT), biases=NONE, acts=NONE):
    """As one kernel, on two threads."""
    as_one = replace(geometry, C=x.shape[1], K=geometry.K, R=1, S=1, groups=1)
    panels = packing.panels(expand, as_one, "fprop", config.BN, True)
    windows = packing.panels(window, replace(geometry, C=1, groups=1), "fprop", config.BN, True)
    epilogues = [Epilogue(norm.eps, activation) for norm, activation in zip(norms, acts, strict=True)]
    launch = expansion.expansion_launch(x.shape[1], geometry, "ieee", *epilogues, x.shape[1], 2, config)
    y = torch.empty(geometry.output, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    workspace = torch.empty(expansion.workspace(launch), dtype=x.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    inner, outer = (norm.vectors for norm in norms)
    engines.ENGINES[engine].bind(launch)(x, panels, biases[0], *inner, windows, biases[1], y, *outer, workspace)
    return y


def operands(case, C, make, dtype):
    N, K, H, W = case.input
    return [make(shape, dtype, seed=i) for i, shape in enumerate(((N, C, H, W), (K, C, 1, 1), case.weight))]


WAYS = (("native", f32), ("native", torch.float64), ("native", torch.bfloat16), ("interpreter", f32))


@pytest.mark.parametrize(("engine", "dtype"), WAYS, ids=str)
@pytest.mark.parametrize(("case", "config"), list(itertools.product(CASES, BANDS)), ids=str)
def test_integer_sums_are_exact(case, config, engine, dtype):
    x, expand, window = operands(case, 5, integers, dtype)
    between = F.conv2d(x.double(), expand.double()).to(dtype)
    want = F.conv2d(between.double(), window.double(), **case.options).to(dtype)
    assert torch.equal(run(x, expand, window, case.geometry, config, engine), want)


EPILOGUES = {
    "relu6": (("relu6", "relu6"), True, False),
    "bias": ((None, "silu"), False, True),
    "inner": (("tanh>prelu", "relu>sigmoid"), True, True),
}


def norm(K: int, slopes: bool = False) -> Norm:
    mean, weight, bias, slope = (normal((K,), f32, seed=i) for i in range(4))
    return Norm(mean, 1 + weight.abs(), weight, bias, 1e-3, slope if slopes else None)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("acts", "normed", "biased"), EPILOGUES.values(), ids=EPILOGUES)
def test_every_epilogue_is_that_of_the_two_kernels(case, acts, normed, biased):
    x, expand, window = operands(case, 24, normal, f32)
    g, K = case.geometry, case.geometry.K
    norms = (norm(K, "prelu" in str(acts)), norm(K)) if normed else (ABSENT, ABSENT)
    biases = [normal((K,), f32, seed=7 + i) for i in range(2)] if biased else NONE
    pixels = replace(g, C=24, K=K, R=1, S=1, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1)
    between = conv.bind_fprop(x, expand, biases[0], pixels, acts[0], norm=norms[0])(x)
    want = depthwise.bind_fprop(between, window, biases[1], g, acts[1], norm=norms[1])(between)
    config = configs.band(24, g, f32, threads=1) or BANDS[0]
    got = run(x, expand, window, g, config, norms=norms, biases=biases, acts=acts)
    # Not the same bits: where a tile is not full another step may be fused.
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_bands_fill_no_more_than_their_part_of_the_cache_and_are_shared_out_evenly():
    wide = ConvCase((1, 96, 112, 112), (96, 3, 3), stride=(2, 2), padding=(1, 1), groups=96).geometry
    for threads in (1, 2, 4):
        config = configs.band(16, wide, f32, threads)
        assert 4 * configs.room(wide, config.rows, config.BN, 0) <= caches().second // 4
        items = -(-wide.P // config.rows) * -(-96 // config.BN)
        assert -(-items // threads) * threads <= 1.3 * items


def test_where_two_kernels_are_predicted_to_be_faster():
    case = ConvCase((1, 64, 14, 14), (64, 3, 3), padding=(1, 1), groups=64)
    assert configs.band(16, case.geometry, f32, 2) is not None
    assert configs.band(16, case.geometry, torch.bfloat16, 2) is None
    assert configs.band(16, case.geometry, f32, 64) is None  # bands of one row, which three rows are expanded for
    few = ConvCase((1, 16, 3, 100_000), (16, 3, 3), padding=(1, 1), groups=16)
    assert configs.band(16, few.geometry, f32, 2) is None  # not a row has room
