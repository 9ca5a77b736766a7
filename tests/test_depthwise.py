"""Depthwise kernels: every tile config gives the same exact sums; the border, the epilogue, who takes what."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, ConvCase, integers, normal

from tritonconv import configs, launch
from tritonconv.configs import TileConfig
from tritonconv.functional import conv2d
from tritonconv.launch.norm import Norm

TARGETS = ("interpreter", "cpu", "sm_90", "gfx942")
# Rows of one tile and of several, of which some lie inside the image; classes that few taps reach; two filters each;
# windows wider than the image, whose taps are more than a block; many classes, some of which no tap reaches.
CASES = (
    ConvCase((2, 17, 3, 21), (17, 3, 3), padding=(1, 1), groups=17),
    ConvCase((1, 16, 5, 36), (16, 3, 5), stride=(2, 2), padding=(1, 2), groups=16),
    ConvCase((2, 8, 5, 20), (16, 2, 3), stride=(1, 3), padding=(0, 2), dilation=(3, 2), groups=8),
    ConvCase((1, 8, 4, 5), (8, 2, 9), padding=(0, 4), groups=8),
    ConvCase((2, 8, 7, 22), (16, 3, 3), stride=(3, 2), padding=(2, 1), dilation=(1, 2), groups=8),
)
SPLIT = [("depthwise_wgrad", TileConfig(8, 16, SPLIT=split)) for split in (2, 3, 100)]


def spaces(case):
    pairs = [
        (op, config)
        for op in ("depthwise_fprop", "depthwise_dgrad", "depthwise_wgrad")
        for target in TARGETS
        for config in configs.space(op, case.geometry, torch.float32, target)
    ]
    return [(case, *pair) for pair in dict.fromkeys(pairs + SPLIT)]


def operands(case, make=integers, dtype=torch.float32, device="cpu"):
    return [make(shape, dtype, device, seed=i) for i, shape in enumerate((case.input, case.weight, case.weight[:1]))]


def run(op, x, weight, dy, geometry, config):
    if op == "depthwise_fprop":
        return launch.depthwise.bind_fprop(x, weight, None, geometry, config=config)(x)
    if op == "depthwise_dgrad":
        return launch.depthwise.dgrad(dy, weight, geometry, config=config)
    return launch.depthwise.wgrad(dy, x, geometry, config=config)


@pytest.mark.parametrize(("case", "op", "config"), [row for case in CASES for row in spaces(case)], ids=str)
def test_every_config_is_exact(case, op, config, device):
    x, weight, _ = operands(case, device=device)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = F.conv2d(x, weight, **case.options)
    dy = integers(y.shape, torch.float32, device, seed=3)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    truth = {"depthwise_fprop": y, "depthwise_dgrad": dx, "depthwise_wgrad": dw}
    assert torch.equal(run(op, x.detach(), weight.detach(), dy, case.geometry, config), truth[op])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_norm_residual_and_activation(dtype, device):
    """Powers of two for the variance: all of it is exact but the last rounding."""
    case = CASES[0]
    x, weight, bias = operands(case, dtype=dtype, device=device)
    K = case.kernel[0]
    channel = [integers((K,), torch.float32, device, seed=seed) for seed in (4, 5, 6)]
    norm = Norm(channel[0], torch.full((K,), 0.125, device=device), channel[1], channel[2], 0.125)
    wide = [t.double() for t in (x, weight, bias)]
    z = F.batch_norm(F.conv2d(*wide, **case.options), *(t.double() for t in norm[:4]), eps=0.125)
    residual = integers(z.shape, dtype, device, seed=7)
    got = launch.conv.fprop(x, weight, bias, case.geometry, "relu", norm=norm, residual=residual)
    assert torch.equal(got, torch.relu(z + residual.double()).to(dtype))


def test_statistics(device):
    case = CASES[0]
    y, moments = launch.conv.fprop_with_moments(*operands(case, device=device), case.geometry)
    mean, var = launch.norm.finalize(moments, y.numel() // y.shape[1])
    assert torch.equal(y, F.conv2d(*operands(case, device=device), **case.options))
    torch.testing.assert_close(mean, y.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var, y.var((0, 2, 3), correction=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS[1:3], ids=str)
def test_half_types_round_once(dtype, device):
    case = CASES[1]
    x, weight, bias = (t.requires_grad_() for t in operands(case, dtype=dtype, device=device))
    y = conv2d(x, weight, bias, **case.options)
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    exact = F.conv2d(*wide, **case.options)
    dy = integers(y.shape, dtype, device, seed=3)
    assert torch.equal(y, exact.to(dtype))
    got, want = (torch.autograd.grad(a, b, dy.to(a)) for a, b in ((y, (x, weight)), (exact, wide[:2])))
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b.to(dtype))


def test_a_packed_weight_serves_its_own_direction_only(device):
    """With several filters a channel, fprop and dgrad have one weight in two orders."""
    case = CASES[2]
    x, weight, _ = operands(case, device=device)
    y = conv2d(x, weight, **case.options)
    dx = launch.conv.dgrad(y, weight, None, case.geometry)
    assert torch.equal(dx, F.grad.conv2d_input(x.shape, weight, y, **case.options))
    assert torch.equal(conv2d(x, weight, **case.options), y)


def test_padding_keeps_infinities_out(device):
    x = torch.ones(1, 2, 3, 20, device=device)
    weight = torch.ones(2, 1, 3, 3, device=device, requires_grad=True)
    y = conv2d(x, weight, padding=1, groups=2)
    (dw,) = torch.autograd.grad(y, weight, torch.full_like(y, float("inf")))
    assert dw.isposinf().all()


def test_a_channels_nan_stays_in_it(device):
    x = torch.ones(1, 5, 4, 20, device=device)
    x[:, 2] = float("nan")
    weight = torch.ones(5, 1, 3, 3, device=device, requires_grad=True)
    y = conv2d(x.requires_grad_(), weight, padding=1, groups=5)
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert y.isnan().any(3).any(2).tolist() == [[False, False, True, False, False]]
    assert not dx.isnan().any()
    assert dw.isnan().flatten(1).any(1).tolist() == [False, False, True, False, False]


def test_gradcheck_to_the_second_order(fast_device):
    case = ConvCase((1, 2, 4, 3), (4, 2, 2), stride=(2, 1), padding=(1, 1), groups=2)
    tensors = [t.requires_grad_() for t in operands(case, normal, torch.float64, fast_device)]

    def function(*tensors):
        return conv2d(*tensors, **case.options)

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_few_filters_a_channel_are_taken():
    geometry = CASES[0].geometry
    assert launch.depthwise.takes(geometry)
    assert launch.depthwise.takes(replace(geometry, K=4 * 17))
    assert not launch.depthwise.takes(replace(geometry, K=8 * 17))  # a matrix product
    assert not launch.depthwise.takes(replace(geometry, C=34, K=34))
    assert not launch.depthwise.takes(replace(geometry, C=1, groups=1))
