"""Images with their padding in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import next_power_of_2

from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels import padding as kernels
from .common import empty_nhwc, nhwc, prepare


def pad_launch(target: str, geometry: ConvGeometry, dtype: torch.dtype) -> Launch:
    """Tensors: x, y."""
    g, (height, width) = geometry, _size(geometry)
    (top, _), (left, _) = g.padding
    constexprs = {"C": g.C, "TOP": top, "LEFT": left, "BLOCK": min(1024, next_power_of_2(width * g.C))}
    return Launch(kernels.pad_pixels, (g.N * height, 1, 1), (g.H, g.W, height, width), constexprs, 4, 1)


def padded(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """x with its padding in memory."""
    if geometry.padding == ((0, 0), (0, 0)):
        return nhwc(x)
    y = empty_nhwc(x, geometry.N, geometry.C, *_size(geometry))
    _, run = prepare(x.device, pad_launch, geometry, x.dtype)
    run(nhwc(x), y)
    return y


def _size(geometry: ConvGeometry) -> tuple[int, int]:
    return geometry.H + sum(geometry.padding[0]), geometry.W + sum(geometry.padding[1])
