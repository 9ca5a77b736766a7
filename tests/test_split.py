"""fprop and dgrad with a split reduction: the same as without, epilogue included, and the same bits each time."""

import pytest
import torch
from cases import ConvCase, integers, normal

from tritonconv import configs, launch
from tritonconv.configs import TileConfig
from tritonconv.geometry import ConvGeometry
from tritonconv.launch.norm import Norm

CASES = (
    ConvCase((2, 40, 5, 6), (24, 3, 2), stride=(1, 2), padding=(1, 0)),
    ConvCase((1, 12, 4, 5), (8, 3, 3), padding=(1, 1), groups=2),
    ConvCase((1, 17, 3, 3), (5, 1, 1), stride=(2, 2)),  # one turn: all splits but the first are empty
)
WHOLE, SPLIT = TileConfig(16, 16, 16), TileConfig(16, 16, 16, SPLIT=3)


def operands(case, device, make=integers):
    g = case.geometry
    shapes = case.input, case.weight, (g.K,), g.output
    return [make(shape, torch.float32, device, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fprop_with_every_epilogue(case, device):
    x, weight, bias, residual = operands(case, device)
    # Powers of two, so that nothing rounds.
    norm = Norm(bias, torch.full_like(bias, 0.25), bias * 2, bias, eps=0.0)
    whole, split = (
        launch.conv.fprop(x, weight, bias, case.geometry, "relu", config=c, norm=norm, residual=residual)
        for c in (WHOLE, SPLIT)
    )
    assert torch.equal(split, whole)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_statistics(case, device):
    x, weight, bias, _ = operands(case, device)
    pixels = case.geometry.N * case.geometry.P * case.geometry.Q
    (y, whole), (y_split, split) = (
        launch.conv.fprop_with_moments(x, weight, bias, case.geometry, config=c) for c in (WHOLE, SPLIT)
    )
    assert torch.equal(y_split, y)
    for got, want in zip(launch.norm.finalize(split, pixels), launch.norm.finalize(whole, pixels), strict=True):
        torch.testing.assert_close(got, want)  # their groups of pixels differ


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dgrad_with_bias_and_activation(case, device):
    x, weight, _, dy = operands(case, device)
    bias = integers(x.shape[1:2], torch.float32, device, seed=4)
    for options in ((None, case.geometry, None), (bias, case.geometry, "relu")):
        whole, split = (launch.conv.dgrad(dy, weight, *options, config=c) for c in (WHOLE, SPLIT))
        assert torch.equal(split, whole)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64), ids=str)
def test_parts_are_not_rounded_to_the_outputs_dtype(dtype, device):
    case = CASES[0]
    x, weight = (t.to(dtype) for t in operands(case, device)[:2])
    exact = torch.nn.functional.conv2d(x.double().cpu(), weight.double().cpu(), **case.options)
    got = launch.conv.fprop(x, weight, None, case.geometry, config=SPLIT)
    assert torch.equal(got.cpu(), exact.to(dtype))


def test_same_bits_twice(device):
    x, weight, bias, _ = operands(CASES[0], device, normal)
    first, second = (launch.conv.fprop(x, weight, bias, CASES[0].geometry, config=SPLIT) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("op", ("fprop", "dgrad"))
@pytest.mark.parametrize("target", ("sm_90", "gfx942"))
def test_small_grids_are_split_and_large_ones_are_not(op, target):
    def chosen(N, C, size):
        geometry = ConvGeometry(N, C, size, size, C, 3, 3, (1, 1), ((1, 1), (1, 1)))
        return configs.space(op, geometry, torch.float16, target)[0]

    assert chosen(1, 512, 7).SPLIT > 4
    assert chosen(64, 64, 56).SPLIT == 1
    assert chosen(1, 16, 8).SPLIT == 1  # a second launch would cost more
