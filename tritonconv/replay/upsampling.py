"""Upsampling to the nearest pixel by whole factors, as a launch: so its result may lie where it is concatenated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Number
from operator import truediv

import torch
from torch import Tensor, nn

from ..geometry import PoolGeometry
from ..launch import pool
from ..launch.common import is_channels_last

MODULES = nn.Upsample, nn.UpsamplingNearest2d
_FACTORS = range(1, 5)  # that a kernel has code for


def nearest(
    input: Tensor, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
    antialias=False,
) -> Callable[[], Tensor] | None:  # fmt: skip
    """What computes `F.interpolate` of these arguments, if that repeats the pixels of images in channels_last memory,
    which nobody differentiates."""
    if mode not in ("nearest", "nearest-exact") or torch.is_grad_enabled():
        return None
    if not (input.is_floating_point() and input.dim() == 4 and input.numel() and is_channels_last(input)):
        return None
    N, C, P, Q = input.shape
    R, S = _pair(scale_factor) if size is None else map(truediv, _pair(size), (P, Q))
    if R not in _FACTORS or S not in _FACTORS or not input.is_contiguous(memory_format=torch.channels_last):
        return None
    R, S = int(R), int(S)
    # What average pooling's gradient hands to the pixels of a window, undivided.
    return partial(pool.avg_pool_backward, input, PoolGeometry(N, C, P * R, Q * S, R, S, (R, S)), 1)


def _pair(value) -> tuple:
    return (value, value) if isinstance(value, Number) else tuple(value)
