"""Batch norm: statistics, the pass that applies them, and the gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from ..configs import TileConfig
from ..engines import Launch
from ..geometry import NormGeometry
from ..kernels import norm
from .common import accumulator_of, config_of, empty_nhwc, nhwc, prepare, sum_splits


class Norm(NamedTuple):
    """A batch norm with given statistics: mean and (biased) variance [C], weight and bias [C] or None."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(None if t is None else t.contiguous() for t in self[:4])


def empty_moments(like: Tensor, tiles: int, C: int) -> Tensor:
    """Room for the partial statistics [3, tiles, C]: counts, means and sums of squared deviations."""
    return torch.empty((3, tiles, C), dtype=accumulator_of(like), device=like.device)


def _launch(kernel, target: str, geometry: NormGeometry, dtype, constexprs: dict, config: TileConfig | None) -> Launch:
    config = config or config_of("norm", geometry, dtype, target)
    grid = cdiv(geometry.M, config.BM), cdiv(geometry.C, config.BN), 1
    constexprs = {"C": geometry.C, **constexprs, "BM": config.BM, "BN": config.BN}
    return Launch(kernel, grid, (geometry.M,), constexprs, config.num_warps, 1)


def moments_launch(target: str, geometry: NormGeometry, dtype, config=None) -> Launch:
    """Tensors: x, partial [3, tiles, C]."""
    return _launch(norm.norm_moments, target, geometry, dtype, {}, config)


def finalize_launch(target: str, geometry: NormGeometry, tiles: int) -> Launch:
    """Tensors: partial [3, tiles, C], mean [C], var [C]."""
    block = 64
    constexprs = {"C": geometry.C, "BN": block}
    return Launch(norm.norm_finalize, (cdiv(geometry.C, block), 1, 1), (geometry.M, tiles), constexprs, 2, 1)


def apply_launch(target: str, geometry: NormGeometry, dtype, eps: float, activation, config=None) -> Launch:
    """Tensors: x, mean, var, weight or None, bias or None, residual or None, y."""
    return _launch(norm.norm_apply, target, geometry, dtype, {"EPS": eps, "ACTIVATION": activation}, config)


def backward_sums_launch(target: str, geometry: NormGeometry, dtype, eps: float, activation, config=None) -> Launch:
    """Tensors: dy, y or None, x, mean, var, partial [tiles, 2, C]."""
    return _launch(norm.norm_backward_sums, target, geometry, dtype, {"EPS": eps, "ACTIVATION": activation}, config)


def backward_launch(target: str, geometry: NormGeometry, dtype, eps: float, activation, config=None) -> Launch:
    """Tensors: dy, y or None, x, mean, var, weight or None, sums [2, C], dx, da or None."""
    return _launch(norm.norm_backward, target, geometry, dtype, {"EPS": eps, "ACTIVATION": activation}, config)


def _geometry(x: Tensor) -> NormGeometry:
    return NormGeometry(x.numel() // x.shape[1], x.shape[1])


def moments(x: Tensor, config: TileConfig | None = None) -> Tensor:
    """Partial statistics [3, tiles, C] of x [N, C, H, W]."""
    launch, run = prepare(x.device, moments_launch, _geometry(x), x.dtype, config)
    partial = empty_moments(x, launch.grid[0], x.shape[1])
    run(nhwc(x), partial)
    return partial


def finalize(moments: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of M pixels, from partial statistics [3, tiles, C]."""
    _, tiles, C = moments.shape
    _, run = prepare(moments.device, finalize_launch, NormGeometry(M, C), tiles)
    mean, var = (torch.empty(C, dtype=moments.dtype, device=moments.device) for _ in range(2))
    run(moments, mean, var)
    return mean, var


def apply(
    x: Tensor, norm: Norm, residual: Tensor | None, activation: str | None, config: TileConfig | None = None
) -> Tensor:
    """activation((x − mean) / √(var + eps) · weight + bias + residual), [N, C, H, W]."""
    _, run = prepare(x.device, apply_launch, _geometry(x), x.dtype, norm.eps, activation, config)
    y = empty_nhwc(x, *x.shape)
    run(nhwc(x), *norm.tensors, None if residual is None else nhwc(residual), y)
    return y


def backward(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    norm: Norm,
    activation: str | None,
    needs_da: bool,
    needs_sums: bool,
    batch: bool,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x and, if `needs_da`, of the residual; and, if `needs_sums`, [2, C]: those of bias and weight.

    `batch`: whether the statistics are those of x, so that its gradient needs the sums. `y`, the result of `apply`, is
    needed with an activation only.
    """
    problem = _geometry(x), x.dtype, norm.eps, activation, config
    mean, var, weight, _ = norm.tensors
    dy, y, x = nhwc(dy), None if y is None else nhwc(y), nhwc(x)
    sums = None
    if needs_sums:
        launch, run = prepare(x.device, backward_sums_launch, *problem)
        partial = torch.empty((launch.grid[0], 2, x.shape[1]), dtype=accumulator_of(x), device=x.device)
        run(dy, y, x, mean, var, partial)
        sums = torch.empty_like(partial[0])
        sum_splits(partial, sums)
    _, run = prepare(x.device, backward_launch, *problem)
    dx, da = empty_nhwc(x, *x.shape), empty_nhwc(x, *x.shape) if needs_da else None
    run(dy, y, x, mean, var, weight, sums if batch else None, dx, da)
    return dx, da, sums
