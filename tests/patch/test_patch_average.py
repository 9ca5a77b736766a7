"""Average pooling behind a 1 × 1 convolution, which comes before it instead."""

import pytest
import torch
from networks import assert_as_before, statuses
from torch import nn

import tritonconv

POOLS = {
    "halves": nn.AvgPool2d(2),
    "overlapping windows": nn.AvgPool2d((3, 2), (2, 1)),
    "ceil_mode": nn.AvgPool2d(2, ceil_mode=True),
    "the whole image": nn.AdaptiveAvgPool2d(1),
    "uneven windows": nn.AdaptiveAvgPool2d((3, 2)),
}
OTHERS = {
    "a window": (nn.Conv2d(4, 6, 3, padding=1), nn.AvgPool2d(2)),
    "a stride": (nn.Conv2d(4, 6, 1, stride=2), nn.AvgPool2d(2)),
    "padding": (nn.Conv2d(4, 6, 1, padding=1), nn.AvgPool2d(2)),
    "padding of the pooling": (nn.Conv2d(4, 6, 1), nn.AvgPool2d(2, padding=1)),
    "a divisor": (nn.Conv2d(4, 6, 1), nn.AvgPool2d(2, divisor_override=3)),
}


def network(conv: nn.Conv2d, pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, pool).double()


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 4, 7, 6), dtype=torch.float64)


@pytest.mark.parametrize("groups", (1, 2))
@pytest.mark.parametrize("pool", POOLS)
def test_the_pooling_comes_first(pool, groups):
    model = tritonconv.patch(network(nn.Conv2d(4, 6, 1, groups=groups), POOLS[pool]))
    (status,) = statuses(model).values()
    assert status in ("fused conv2d+avg_pool2d", "fused conv2d+adaptive_avg_pool2d")
    assert_as_before(model, image())
    assert_as_before(model, image(4, 7, 6))
    with pytest.raises(RuntimeError, match=r"expected input\[1, 3, 7, 6\] to have"):
        model(image(1, 3, 7, 6))
    shapes = []
    model[0].register_forward_pre_hook(lambda conv, inputs: shapes.append(inputs[0].shape))
    model(image())
    assert shapes == [(2, 4, 7, 6)]  # as always


def test_fewer_pixels_are_convolved(kernel_calls):
    model = tritonconv.patch(network(nn.Conv2d(4, 6, 1), nn.AvgPool2d(2)))
    model(image())
    assert kernel_calls == ["avg_pool2d", "conv2d"]


@pytest.mark.parametrize("what", OTHERS)
def test_others_keep_their_order(what):
    model = tritonconv.patch(network(*OTHERS[what]))
    assert set(statuses(model).values()) == {"swapped conv2d", "swapped avg_pool2d"}
    assert_as_before(model, image())
