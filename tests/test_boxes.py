"""fprop and dgrad with operands that come as boxes through tensor descriptors: exact, whatever the edges."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import ConvCase, integers

from tritonconv import configs, engines, launch
from tritonconv.configs import TileConfig, boxes

TILE = TileConfig(32, 16, 16, GROUP_M=2, boxed=True)
# Boxes that end outside of the image, of one image and of several; dilated taps; groups; one row; panels alone.
CASES = (
    (ConvCase((2, 16, 5, 9), (16, 3, 3), padding=(1, 1)), TILE),
    (ConvCase((3, 32, 5, 9), (32, 3, 2), padding=(0, 2), dilation=(2, 1), groups=2), replace(TILE, BM=64, SPLIT=3)),
    (ConvCase((2, 32, 5, 9), (48, 1, 1)), TILE),
    (ConvCase((5, 16, 2, 2), (16, 2, 1), padding=(1, 0)), TILE),
    (ConvCase((2, 32, 5, 9), (48, 3, 3), stride=(2, 2), padding=(1, 1)), TILE),
    (ConvCase((2, 32, 6, 8), (48, 3, 3), stride=(2, 2), padding=(1, 1)), TILE),
    (ConvCase((3, 32, 9, 8), (32, 3, 2), stride=(3, 2), padding=(4, 3), dilation=(2, 3), groups=2), TILE),
    (ConvCase((2, 16, 6, 5), (32, 2, 1), stride=(2, 1)), replace(TILE, SPLIT=2)),
    (ConvCase((1, 16, 5, 9), (144, 3, 3), padding=(1, 1)), replace(TILE, BN=128)),
)


def truth(case, dtype):
    tensors = [integers(shape, torch.float64, seed=i) for i, shape in enumerate((case.input, case.weight))]
    y = F.conv2d(tensors[0].requires_grad_(), tensors[1], **case.options)
    dy = integers(y.shape, torch.float64, seed=2)
    (dx,) = torch.autograd.grad(y, tensors[0], dy)
    return [t.detach().to(dtype) for t in (*tensors, dy, y, dx)]


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize(("case", "tile"), CASES, ids=str)
def test_boxes_are_exact(case, tile, dtype, device):
    x, weight, dy, y, dx = (t.to(device) for t in truth(case, dtype))
    assert torch.equal(launch.conv.fprop(x, weight, None, case.geometry, config=tile), y)
    assert torch.equal(launch.conv.dgrad(dy, weight, None, case.geometry, config=tile), dx)


def test_statistics_of_boxes(device):
    case, tile = CASES[0]
    x, weight, _, y, _ = (t.to(device) for t in truth(case, torch.float32))
    got, moments = launch.conv.fprop_with_moments(x, weight, None, case.geometry, config=tile)
    assert torch.equal(got, y)
    mean, var = launch.norm.finalize(moments, y.numel() // y.shape[1])
    torch.testing.assert_close(mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(var, y.var((0, 2, 3), correction=0))


def test_a_tensor_that_is_not_aligned_is_taken_too(device):
    case, tile = CASES[0]
    x, weight, _, y, _ = (t.to(device) for t in truth(case, torch.float16))
    nhwc = torch.empty(x.numel() + 1, dtype=x.dtype, device=device)[1:].view(2, 5, 9, 16).permute(0, 3, 1, 2)
    nhwc.copy_(x)
    assert nhwc.data_ptr() % 16
    assert torch.equal(launch.conv.fprop(nhwc, weight, None, case.geometry, config=tile), y)


@pytest.mark.parametrize("name", [name for name in engines.available() if name != "triton"])
def test_bounds_are_checked_through_descriptors(name, monkeypatch):
    monkeypatch.setenv("TRITONCONV_DEBUG", "1")
    case, tile = CASES[0]
    x, weight, _, y, _ = truth(case, torch.float16)
    launch.common.forget()
    with engines.use(name):
        assert torch.equal(launch.conv.fprop(x, weight, None, case.geometry, config=tile), y)
    launch.common.forget()


@pytest.mark.parametrize(("size", "tiles"), ((128, 4096), (56, 784), (14, 49), (7, 14), (4, 4)))
def test_boxes_are_those_of_which_the_fewest_cover_the_output(size, tiles):
    geometry, tile = ConvCase((32, 64, size, size), (64, 3, 3), padding=(1, 1)).geometry, replace(TILE, BM=128)
    assert math.prod(boxes.box(tile, "fprop", geometry)) == 128
    assert boxes.m_tiles(tile, "fprop", geometry) == tiles
    assert boxes.box(tile, "fprop", replace(geometry, W=128)) == (1, 1, 128)  # of several the widest


def test_boxes_are_for_accelerated_targets_and_whole_blocks():
    def boxed(channels, dtype, target):
        geometry = ConvCase((32, channels, 14, 14), (64, 3, 3), padding=(1, 1)).geometry
        return any(config.boxed for config in configs.space("fprop", geometry, dtype, target))

    assert boxed(96, torch.bfloat16, "sm_90")
    assert boxed(96, torch.bfloat16, "sm_100")
    for channels, dtype, target in ((96, torch.float32, "sm_90"), (90, torch.float16, "sm_90")):
        assert not boxed(channels, dtype, target)
    for target in ("sm_80", "sm_89", "gfx942", "cpu", "interpreter"):
        assert not boxed(96, torch.float16, target)
