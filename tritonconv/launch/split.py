"""fprop and dgrad with a split reduction, so that a small output keeps a large machine busy: parts, then their sum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from triton import cdiv

from ..engines import Launch
from ..geometry import NormGeometry
from ..kernels import split as kernels
from .common import accumulator_of, config_of, prepare

_OPTIONAL = 7  # mean, var, gamma, beta, slopes, residual, moments


def finish_launch(
    target: str, geometry: NormGeometry, dtype, splits: int, activation, eps: float, config=None
) -> Launch:
    """Tensors: partial [splits, M, C], bias, y [M, C], then mean, var, gamma, beta of a norm, slopes of a PReLU,
    residual, moments. All but partial and y may be None."""
    config = config or config_of("conv_finish", geometry, dtype, target)
    grid = cdiv(geometry.M, config.BM), cdiv(geometry.C, config.BN), 1
    constexprs = {"K": geometry.C, "EPS": eps, "ACTIVATION": activation, "BM": config.BM, "BN": config.BN}
    return Launch(kernels.conv_finish, grid, (geometry.M, splits), constexprs, config.num_warps, 1)


def bind(
    like: Tensor,
    launch: Launch,
    run: Callable[..., None],
    geometry: NormGeometry,
    activation: str | None,
    eps: float = 0.0,
    apart: bool = False,
) -> tuple[int, Callable[..., None]]:
    """How many tiles of rows the output has, each with a partial statistic, and a function of the tensors that `launch`
    takes unsplit.

    `run` runs the launch. The output is M × C elements of the dtype of `like`. `apart`: whether the epilogue must come
    after the sums even where they are not split, because its channels are not the launch's columns."""
    splits = launch.grid[2]
    if splits == 1 and not apart:
        return launch.grid[0] // -(-launch.constexprs["K"] // launch.constexprs["BN"]), run
    finish, run_finish = prepare(like.device, finish_launch, geometry, like.dtype, splits, activation, eps)
    shape, dtype, device = (splits, geometry.M, geometry.C), accumulator_of(like), like.device

    def run_both(x: Tensor, panels: Tensor, bias: Tensor | None, y: Tensor, *rest: Tensor | None) -> None:
        partial = torch.empty(shape, dtype=dtype, device=device)
        run(x, panels, None, partial, *(None,) * len(rest))
        run_finish(partial, bias, y, *rest, *(None,) * (_OPTIONAL - len(rest)))

    return finish.grid[0], run_both
