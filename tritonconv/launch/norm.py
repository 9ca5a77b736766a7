"""Batch norm and group norm: statistics, the pass that applies them, and the gradients; and those of PReLU."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from ..configs import TileConfig
from ..configs.tile import MACHINES, kind_of
from ..engines import Launch
from ..geometry import GroupGeometry, NormGeometry
from ..kernels import norm
from .common import accumulator_of, config_of, is_channels_last, prepare, summed
from .room import empty


class Norm(NamedTuple):
    """A norm with given statistics: mean and (biased) variance [C], or those of each image by itself, for each channel
    of its groups, [N, groups, C / groups]; weight and bias [C] or None; and the slopes [C] or [1] of a PReLU behind it.
    Either may be absent."""

    mean: Tensor | None = None
    var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0
    slope: Tensor | None = None

    @property
    def groups(self) -> int:
        """Of an image; 0 where its channels have the batch's statistics."""
        return 0 if self.mean is None or self.mean.dim() == 1 else self.mean.shape[1]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(None if t is None else t.contiguous() for t in self[:4])

    @property
    def vectors(self) -> tuple[Tensor | None, ...]:
        """The norm's tensors, and the slopes."""
        return *self.tensors, None if self.slope is None else self.slope.contiguous()


ABSENT = Norm()


def empty_moments(like: Tensor, tiles: int, C: int) -> Tensor:
    """Room for the partial statistics [3, tiles, C]: counts, means and sums of squared deviations."""
    return torch.empty((3, tiles, C), dtype=accumulator_of(like), device=like.device)


def empty_statistics(like: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """Room for mean and variance of what is like this tensor."""
    mean, var = (torch.empty(shape, dtype=accumulator_of(like), device=like.device) for _ in range(2))
    return mean, var


def _launch(kernel, target: str, geometry: NormGeometry, dtype, constexprs: dict, config: TileConfig | None) -> Launch:
    config = config or config_of(kernel.__name__, geometry, dtype, target)
    tiles = cdiv(geometry.M, config.BM)
    parts = geometry.N * cdiv(tiles, config.BK) if geometry.group else cdiv(geometry.N * tiles, config.BK)
    grid = parts, cdiv(geometry.C, config.BN), 1
    constexprs = {"C": geometry.C, "PLANAR": geometry.planar, **constexprs, "BM": config.BM, "BN": config.BN}
    if "TILES" in kernel.arg_names:  # a program takes several
        constexprs["TILES"] = config.BK
    if "EACH" in kernel.arg_names:
        constexprs["EACH"] = geometry.group > 0
    return Launch(kernel, grid, (geometry.M, geometry.N), constexprs, config.num_warps, 1)


def moments_launch(target: str, geometry: NormGeometry, dtype, config=None) -> Launch:
    """Tensors: x, partial [3, parts, C]."""
    return _launch(norm.norm_moments, target, geometry, dtype, {}, config)


def finalize_launch(target: str, geometry: NormGeometry, tiles: int) -> Launch:
    """Tensors: partial [3, tiles, C], mean [C], var [C]."""
    together = min(MACHINES[kind_of(target)].together, next_power_of_2(tiles))
    block = max(16, 64 // together)  # of few channels there are more programs
    constexprs = {"C": geometry.C, "TOGETHER": together, "BN": block}
    return Launch(norm.norm_finalize, (cdiv(geometry.C, block), 1, 1), (geometry.M, tiles), constexprs, 4, 1)


def apply_launch(target: str, geometry: NormGeometry, dtype, eps: float, activation, config=None) -> Launch:
    """Tensors: x, mean, var, weight, bias of a norm, slopes of a PReLU, residual, y. All but x and y may be None."""
    options = {"PIXEL": geometry.C, "EPS": eps, "ACTIVATION": activation}
    return _launch(norm.norm_apply, target, geometry, dtype, options, config)


def backward_sums_launch(target: str, geometry: NormGeometry, dtype, eps: float, activation, config=None) -> Launch:
    """Tensors: dy, y or None, x, mean, var, weight, bias, residual (each or None), partial [parts, 2, C], of a group
    norm [parts of an image, N, 2, C]."""
    return _launch(norm.norm_backward_sums, target, geometry, dtype, {"EPS": eps, "ACTIVATION": activation}, config)


def backward_launch(target: str, geometry: NormGeometry, dtype, eps: float, activation, config=None) -> Launch:
    """Tensors: dy, y or None, x, mean, var, weight, bias, residual, sums [2, C] (each or None), dx, da or None.
    Of a group norm means [2, N, C] instead of the sums."""
    return _launch(norm.norm_backward, target, geometry, dtype, {"EPS": eps, "ACTIVATION": activation}, config)


def prelu_backward_launch(target: str, geometry: NormGeometry, dtype, activation: str, config=None) -> Launch:
    """Tensors: dy, x, slopes, dx, partial [tiles, C] or None."""
    return _launch(norm.prelu_backward, target, geometry, dtype, {"ACTIVATION": activation}, config)


def _seen(x: Tensor, groups: int = 0) -> tuple[NormGeometry, torch.memory_format]:
    """How kernels see x [N, C, H, W], and the memory format that it, and all that goes with it, must have. `groups`: of
    channels that have statistics of their own in each image, if there are such."""
    N, C, H, W = x.shape
    if groups:
        planar = not is_channels_last(x) and H * W != 1  # else rows of channels, in either format
        memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        return GroupGeometry(H * W, C, N, planar, groups), memory_format
    if is_channels_last(x):
        return NormGeometry(N * H * W, C), torch.channels_last
    if H * W == 1:  # rows of channels, in either format
        return NormGeometry(N, C), torch.contiguous_format
    return NormGeometry(H * W, C, N, planar=True), torch.contiguous_format


def laid(x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as kernels read them beside x, for two that would each copy them."""
    return _laid(_seen(x)[1], *tensors)


def _laid(memory_format: torch.memory_format, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous(memory_format=memory_format) for t in tensors]


def empty_result(x: Tensor) -> Tensor:
    """Room for what has the sizes of x, in the memory format that kernels give it."""
    return _empty(x, _seen(x)[1])


def _empty(like: Tensor, memory_format: torch.memory_format) -> Tensor:
    return empty(like, like.shape, memory_format=memory_format)


def moments(x: Tensor, config: TileConfig | None = None, groups: int = 0) -> Tensor:
    """Partial statistics [3, tiles, C] of x [N, C, H, W]; with `groups` each tile is in one image."""
    geometry, memory_format = _seen(x, groups)
    launch, run = prepare(x.device, moments_launch, geometry, x.dtype, config)
    partial = empty_moments(x, launch.grid[0], geometry.C)
    run(*_laid(memory_format, x), partial)
    return partial


def finalize(moments: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of M pixels, from partial statistics [3, tiles, C]."""
    _, tiles, C = moments.shape
    _, run = prepare(moments.device, finalize_launch, NormGeometry(M, C), tiles)
    mean, var = empty_statistics(moments, C)
    run(moments, mean, var)
    return mean, var


def apply(
    x: Tensor, norm: Norm, residual: Tensor | None, activation: str | None, config: TileConfig | None = None
) -> Tensor:
    """activation(norm(x) + residual), [N, C, H, W] in the memory format of x."""
    geometry, memory_format = _seen(x, norm.groups)
    _, run = prepare(x.device, apply_launch, geometry, x.dtype, norm.eps, activation, config)
    x, residual = _laid(memory_format, x, residual)
    y = _empty(x, memory_format)
    run(x, *norm.vectors, residual, y)
    return y


def backward_sums(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    norm: Norm,
    residual: Tensor | None,
    activation: str | None,
    config: TileConfig | None = None,
) -> Tensor:
    """Gradients [2, C] of bias and weight; of a group norm those of each image, [N, 2, C].

    Of an activation either its result y tells the derivative, or, where y is None, its argument, which is made of x and
    the residual.
    """
    geometry, memory_format = _seen(x, norm.groups)
    launch, run = prepare(x.device, backward_sums_launch, geometry, x.dtype, norm.eps, activation, config)
    dy, y, x, residual = _laid(memory_format, dy, y, x, residual)
    images = (geometry.N,) if geometry.group else ()
    sums = torch.empty((*images, 2, geometry.C), dtype=accumulator_of(x), device=x.device)
    given = dy, y, x, *norm.tensors, residual
    summed(lambda partial: run(*given, partial), launch.grid[0] // math.prod(images), sums)
    return sums


def backward(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    norm: Norm,
    residual: Tensor | None,
    activation: str | None,
    needs_da: bool,
    sums: Tensor | None,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and, if `needs_da`, of the residual. `sums`: those of `backward_sums`, if the statistics are those
    of x, of a group norm `group_norm.means` of them; all else is as there."""
    geometry, memory_format = _seen(x, norm.groups)
    _, run = prepare(x.device, backward_launch, geometry, x.dtype, norm.eps, activation, config)
    dy, y, x, residual = _laid(memory_format, dy, y, x, residual)
    dx, da = _empty(x, memory_format), _empty(x, memory_format) if needs_da else None
    run(dy, y, x, *norm.tensors, residual, sums, dx, da)
    return dx, da


def prelu_backward(
    dy: Tensor, x: Tensor, slope: Tensor, activation: str, needs_sums: bool, config: TileConfig | None = None
) -> list[Tensor]:
    """The gradient of x behind a PReLU and, if `needs_sums`, that of a slope for each channel, [C]."""
    geometry, memory_format = _seen(x)
    launch, run = prepare(x.device, prelu_backward_launch, geometry, x.dtype, activation, config)
    dy, x = _laid(memory_format, dy, x)
    dx = _empty(x, memory_format)
    if not needs_sums:
        run(dy, x, slope.contiguous(), dx, None)
        return [dx]
    sums = torch.empty(geometry.C, dtype=accumulator_of(x), device=x.device)
    summed(lambda partial: run(dy, x, slope.contiguous(), dx, partial), launch.grid[0], sums)
    return [dx, sums]
