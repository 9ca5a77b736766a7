"""1-D convolution of three taps by Winograd's algorithm: fprop, and dgrad as that of the flipped, transposed weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from triton import cdiv

from ..configs import TileConfig
from ..configs.conv1d_winograd import OUT, POINTS, tiles
from ..configs.winograd import as_fprop
from ..engines import Launch
from ..geometry import RowGeometry
from ..kernels import conv1d_winograd as kernels
from . import packing
from .common import accumulator_of, config_of, precision_of, prepare, scratch
from .norm import ABSENT, Norm
from .room import empty


def fprop_launch(
    target: str, geometry: RowGeometry, dtype, precision, activation, threads: int, config=None, eps: float = 0.0
) -> Launch:
    """Tensors: x, filters, bias, y, then mean, var, gamma, beta of a norm, slopes of a PReLU, residual, workspace. All
    but x, filters, y and workspace may be None. `threads`: how many programs at least there should be."""
    config = config or config_of("conv1d_winograd", geometry, dtype, target)
    blocks = geometry.N * cdiv(tiles(geometry), config.BN)
    # More programs than threads, so that none waits for long; not more still, for each has a workspace of its own.
    grid = min(blocks, 4 * threads), min(cdiv(geometry.K, config.BM), cdiv(threads, blocks)), 1
    constexprs = {
        "C": geometry.C,
        "K": geometry.K,
        "FIRST": -geometry.padding[1][0],
        "DIL": geometry.dilation[1],
        "EPS": eps,
        "ACTIVATION": activation,
        "PRECISION": precision,
        "OUT": config.OUT,
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
    }
    sizes = geometry.N, geometry.W, geometry.Q
    return Launch(kernels.conv1d_winograd, grid, sizes, constexprs, config.num_warps, config.num_stages)


def filter_launch(target: str, op: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> Launch:
    """Tensors: a weight [K, C, …, 3] of these strides, and its transformed taps [points, columns, reduced channels]."""
    backwards = op == "dgrad"
    reduced, columns = (0, 1) if backwards else (1, 0)
    tile, tap = 16, strides[-1]
    constexprs = {
        "C": shape[reduced],
        "K": shape[columns],
        "FIRST": 2 * tap if backwards else 0,
        "STRIDE_C": strides[reduced],
        "STRIDE_K": strides[columns],
        "STRIDE_TAP": -tap if backwards else tap,
        "OUT": OUT,
        "BM": tile,
        "BK": tile,
    }
    grid = cdiv(shape[reduced], tile), cdiv(shape[columns], tile), 1
    return Launch(kernels.conv1d_winograd_filter, grid, (), constexprs, 4, 1)


def _filters(weight: Tensor, op: str, keep: bool) -> Tensor:
    w = weight.detach()
    _, transform = prepare(w.device, filter_launch, op, w.shape, w.stride())

    def make() -> Tensor:
        u = torch.empty(POINTS * w.shape[0] * w.shape[1], dtype=accumulator_of(w), device=w.device)
        transform(w, u)
        return u

    return packing.kept(weight, ("conv1d_winograd", op), keep, make)


def _bind(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: RowGeometry,
    activation: str | None = None,
    keep_pack: bool = True,
    config: TileConfig | None = None,
    norm: Norm = ABSENT,
) -> Callable[[Tensor, Tensor | None], Tensor]:
    problem = as_fprop(op, geometry)
    made = problem, x.dtype, precision_of(x), activation, torch.get_num_threads(), config, norm.eps
    launch, run = prepare(x.device, fprop_launch, *made)
    BM, BN = (launch.constexprs[name] for name in ("BM", "BN"))
    room = launch.grid[0] * launch.grid[1] * POINTS * BN * (problem.C + BM)
    filters = _filters(weight, op, keep_pack)
    bias = None if bias is None else bias.contiguous()
    vectors = norm.vectors

    def conv(x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = empty(x, problem.output)
        residual = None if residual is None else residual.contiguous()
        run(x.contiguous(), filters, bias, y, *vectors, residual, scratch("workspace", x, room))
        return y

    return conv


def bind_fprop(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: RowGeometry, *options, **named):
    """See `conv.bind_fprop`."""
    return _bind("fprop", x, weight, bias, geometry, *options, **named)


def dgrad(dy: Tensor, weight: Tensor, bias: Tensor | None, geometry: RowGeometry, *options, **named) -> Tensor:
    """See `conv.dgrad`."""
    return _bind("dgrad", dy, weight, bias, geometry, *options, **named)(dy)
