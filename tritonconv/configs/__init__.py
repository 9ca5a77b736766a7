"""Tile configs: for a problem and a target, the search space as a pure function, the predicted choice first."""

from __future__ import annotations

import torch

from ..geometry import ConvGeometry, NormGeometry, PoolGeometry
from . import depthwise, gemm, norm, pool
from .tile import TileConfig

__all__ = ["Geometry", "TileConfig", "space"]

_SPACES = {
    "fprop": gemm.space,
    "dgrad": gemm.space,
    "wgrad": gemm.space,
    "depthwise_fprop": depthwise.space,
    "depthwise_dgrad": depthwise.space,
    "depthwise_wgrad": depthwise.space,
    "max_pool": pool.space,
    "max_pool_backward": pool.space,
    "norm": norm.space,
}


Geometry = ConvGeometry | PoolGeometry | NormGeometry


def space(op: str, geometry: Geometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    """Configs for `op`, a key of `_SPACES`, on activations of `dtype`, the predicted choice first.

    `target` is "cpu", "interpreter" or the name of a GPU ("sm_90", "gfx942").
    """
    return _SPACES[op](op, geometry, dtype, target)
