"""Expansion and depthwise convolution in one launch, on CPUs."""

from __future__ import annotations

from dataclasses import dataclass

from triton import cdiv

from ..configs.expansion import BandConfig, room
from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels import expansion as kernels
from .common import sizes, window

_PROGRAMS = 2  # a thread, so that what one is late with another may take


@dataclass(frozen=True)
class Epilogue:
    eps: float
    activation: str | None


def expansion_launch(
    C: int, depthwise: ConvGeometry, precision: str, inner: Epilogue, outer: Epilogue, pixel: int, threads: int,
    config: BandConfig,
) -> Launch:  # fmt: skip
    """Tensors: x, of C channels, pixels `pixel` elements apart; panels "fprop" of the expansion, its bias, mean, var,
    gamma and beta of its norm, slopes of its PReLU; panels of the windows; bias; y; mean, var, gamma, beta, slopes; a
    workspace of `workspace` elements of y's dtype. All but x, panels, y and workspace may be None."""
    g = depthwise
    (top, _), (left, _) = g.padding
    items = g.N * cdiv(g.P, config.rows) * cdiv(g.K, config.BN)
    constexprs = {
        "C": C,
        "K": g.K,
        **window(g, (top, left)),
        "PIXEL": pixel,
        "INNER_EPS": inner.eps,
        "INNER_ACTIVATION": inner.activation,
        "EPS": outer.eps,
        "ACTIVATION": outer.activation,
        "PRECISION": precision,
        "ROWS": config.rows,
        "ROOM": room(g, config.rows, config.BN, config.BQ),
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
        "BQ": config.BQ,
    }
    grid = min(_PROGRAMS * threads, items), 1, 1
    return Launch(kernels.expand_depthwise, grid, sizes(g), constexprs, 1, 1)


def workspace(launch: Launch) -> int:
    """Elements of the workspace."""
    return launch.grid[0] * launch.constexprs["ROOM"]
