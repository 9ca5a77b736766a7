"""Tile configs: for a problem and a target, the search space as a pure function, the predicted choice first."""

from __future__ import annotations

import functools
import math

import torch

from ..geometry import AdaptiveGeometry, ConvGeometry, NormGeometry, PoolGeometry, RowGeometry
from . import conv1d, conv1d_winograd, depthwise, gemm, linear, norm, pool, winograd
from .tile import TileConfig

__all__ = ["Geometry", "TileConfig", "algorithm", "algorithms", "cost", "space"]

_SPACES = {
    "fprop": gemm.space,
    "dgrad": gemm.space,
    "wgrad": gemm.space,
    **dict.fromkeys(("conv1d_fprop", "conv1d_dgrad", "conv1d_wgrad"), conv1d.space),
    "conv1d_winograd": conv1d_winograd.space,
    "depthwise_fprop": depthwise.space,
    "depthwise_dgrad": depthwise.space,
    "depthwise_wgrad": depthwise.space,
    "max_pool": pool.space,
    "max_pool_backward": pool.space,
    "max_unpool": pool.unpool_space,
    "avg_pool": pool.space,
    "avg_pool_backward": pool.space,
    "global_avg_pool": pool.global_space,
    **dict.fromkeys(("linear", "linear_fprop", "linear_dgrad", "linear_wgrad"), linear.space),
    **dict.fromkeys(("norm_moments", "norm_apply", "norm_backward_sums", "norm_backward"), norm.space),
    **dict.fromkeys(("prelu_backward", "conv_finish"), norm.space),
    "winograd": winograd.space,
    "winograd_wgrad": winograd.wgrad_space,
}
_COSTS = {
    **dict.fromkeys(("fprop", "dgrad", "wgrad"), gemm.cost),
    **dict.fromkeys(("winograd", "winograd_wgrad"), winograd.cost),
    "conv1d_winograd": conv1d_winograd.cost,
}

Geometry = ConvGeometry | PoolGeometry | AdaptiveGeometry | NormGeometry


def space(op: str, geometry: Geometry, dtype: torch.dtype, target: str) -> tuple[TileConfig, ...]:
    """Configs for `op`, a key of `_SPACES`, on activations of `dtype`, the predicted choice first.

    `target` is "cpu", "interpreter" or the name of a GPU ("sm_90", "gfx942").
    """
    return _SPACES[op](op, geometry, dtype, target)


@functools.lru_cache(maxsize=4096)
def algorithms(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> dict[str, float]:
    """The ways to compute "fprop", "dgrad", "wgrad", "conv1d_fprop" or "conv1d_dgrad", "gemm" and perhaps "winograd",
    with their predicted costs.

    Winograd's is not for float64, and from 16 channels on: it rounds more, and few channels gain little. For a GPU its
    cost is infinite: nothing tells yet where it wins there, so that only a measurement can choose it. In one dimension
    it is for CPUs only.
    """
    asked, rows = (geometry, dtype, target), isinstance(geometry, RowGeometry)
    found = {"gemm": conv1d_winograd.gemm_cost(space(op, *asked)[0], op, *asked) if rows else _least(op, *asked)}
    few = dtype is torch.float64 or min(geometry.C, geometry.K) < 16
    if target == "interpreter" or few or not winograd.takes(op, geometry) or (rows and target != "cpu"):
        return found
    if target != "cpu":
        return found if winograd.as_fprop(op, geometry) is None and op != "wgrad" else found | {"winograd": math.inf}
    if op == "wgrad":
        return found | {"winograd": _least("winograd_wgrad", geometry, dtype, target)}
    if (problem := winograd.as_fprop(op, geometry)) is None:
        return found
    return found | {"winograd": _least("conv1d_winograd" if rows else "winograd", problem, dtype, target)}


def _least(op: str, *problem) -> float:
    return cost(space(op, *problem)[0], op, *problem)


def algorithm(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> str:
    """The cheapest of `algorithms`, as predicted."""
    costs = algorithms(op, geometry, dtype, target)
    return min(costs, key=costs.get)


def cost(config: TileConfig, op: str, geometry: Geometry, dtype: torch.dtype, target: str) -> float | None:
    """The number by which `space` orders configs, in a unit of the target's own; None where there is none."""
    return _COSTS[op](config, op, geometry, dtype, target) if op in _COSTS else None
