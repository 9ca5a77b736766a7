"""3 × 3 convolution by Winograd's algorithm: fprop, and dgrad as the fprop of the flipped, transposed weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from .. import packing
from ..configs import TileConfig
from ..configs.tile import kind_of
from ..configs.winograd import as_fprop
from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels import winograd
from .common import config_of, empty_nhwc, nhwc, precision_of, prepare, sizes
from .norm import Norm


def fprop_launch(
    target: str, geometry: ConvGeometry, dtype, precision, activation, threads: int, config=None, eps: float = 0.0
) -> Launch:
    """Tensors: x, panels "winograd_fprop", bias, y, then mean, var, gamma, beta of a norm, residual, workspace. All but
    x, panels, y and workspace may be None. `threads`: how many programs at least there should be.
    """
    config = config or config_of("winograd", geometry, dtype, target)
    tiles = geometry.N * cdiv(geometry.P, 4) * cdiv(geometry.Q, 4)
    blocks = cdiv(tiles, config.BM)
    # More programs than threads, so that none waits for long; not more still, for each has a workspace of its own.
    grid = min(blocks, 4 * threads), min(cdiv(geometry.K, config.BN), cdiv(threads, blocks)), 1
    (top, _), (left, _) = geometry.padding
    constexprs = {
        "C": geometry.C,
        "K": geometry.K,
        "PAD_H": top,
        "PAD_W": left,
        "EPS": eps,
        "ACTIVATION": activation,
        "PRECISION": precision,
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
        # A GPU has registers for a few channels. Elsewhere a tile's pixels are best found once for all of them.
        "BC": config.BK if kind_of(target) in ("cuda", "hip") else next_power_of_2(geometry.C),
    }
    return Launch(winograd.conv_winograd, grid, sizes(geometry), constexprs, config.num_warps, config.num_stages)


def _bind(
    x, weight, bias, geometry, layout, problem, activation=None, keep_pack=True, config=None, norm=None
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """`geometry` and `problem` are the same convolution, as the weight has it and as an fprop of x."""
    eps = 0.0 if norm is None else norm.eps
    threads = torch.get_num_threads()
    launch, run = prepare(x.device, fprop_launch, problem, x.dtype, precision_of(x), activation, threads, config, eps)
    BM, BN = launch.constexprs["BM"], launch.constexprs["BN"]
    room = launch.grid[0] * launch.grid[1] * 36 * BM * (problem.C + BN)
    bias = None if bias is None else bias.contiguous()
    statistics = (None,) * 4 if norm is None else norm.tensors
    panels = packing.panels(weight, geometry, layout, BN, keep_pack)

    def fprop(x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = empty_nhwc(x, *problem.output)
        workspace = torch.empty(room, dtype=x.dtype, device=x.device)
        run(nhwc(x), panels, bias, y, *statistics, None if residual is None else nhwc(residual), workspace)
        return y

    return fprop


def bind_fprop(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: str | None = None,
    keep_pack: bool = True,
    config: TileConfig | None = None,
    norm: Norm | None = None,
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """See `conv.bind_fprop`."""
    return _bind(x, weight, bias, geometry, "winograd_fprop", geometry, activation, keep_pack, config, norm)


def dgrad(
    dy: Tensor, weight: Tensor, geometry: ConvGeometry, keep_pack: bool = True, config: TileConfig | None = None
) -> Tensor:
    """The gradient of the input, as `conv.dgrad` gives it."""
    problem = as_fprop("dgrad", geometry)
    return _bind(dy, weight, None, geometry, "winograd_dgrad", problem, None, keep_pack, config)(dy)
