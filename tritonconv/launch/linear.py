"""A fully connected layer of one vector."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from triton import cdiv

from ..configs import TileConfig
from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels import linear as kernels
from .common import config_of, prepare


def linear_launch(target: str, geometry: ConvGeometry, dtype, activation: str | None, config=None) -> Launch:
    """Tensors: x [C], weight [K, C], bias [K] or None, y [K]."""
    config = config or config_of("linear", geometry, dtype, target)
    constexprs = {"C": geometry.C, "K": geometry.K, "ACTIVATION": activation, "BN": config.BN, "BK": config.BK}
    grid = cdiv(geometry.K, config.BN), 1, 1
    return Launch(kernels.linear, grid, (), constexprs, config.num_warps, config.num_stages)


@functools.cache
def _geometry(K: int, C: int) -> ConvGeometry:
    return ConvGeometry(1, C, 1, 1, K, 1, 1)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, config: TileConfig | None = None
) -> Tensor:
    """activation(x · weightᵀ + bias), [..., K], of a single vector x [..., C] and a contiguous weight [K, C]."""
    _, run = prepare(x.device, linear_launch, _geometry(*weight.shape), x.dtype, activation, config)
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)
    run(x.contiguous(), weight, None if bias is None else bias.contiguous(), y)
    return y
