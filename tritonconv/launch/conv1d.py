"""1-D convolution: fprop, dgrad and wgrad, which leave activations in the memory format they come in."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from triton import cdiv, next_power_of_2

from ..configs import TileConfig
from ..configs.tile import MACHINES, kind_of
from ..engines import Launch
from ..geometry import ConvGeometry, RowGeometry
from ..kernels import conv1d
from . import packing
from .common import config_of, precision_of, prepare
from .norm import ABSENT, empty_moments
from .room import empty


def takes(geometry: ConvGeometry, target: str) -> bool:
    """Whether these kernels compute it, and well: a tap of few channels leaves most of a GPU's product empty."""
    few = 4 if geometry.groups > 1 else MACHINES[kind_of(target)].smallest // 4
    one_row = (geometry.H, geometry.R, *geometry.padding[0]) == (1, 1, 0, 0)
    return one_row and min(geometry.Cg, geometry.Kg) > few


def _constexprs(geometry: RowGeometry, precision: str, config: TileConfig) -> dict:
    return {
        "GROUPS": geometry.groups,
        "C": geometry.Cg,
        "K": geometry.Kg,
        "FIRST": -geometry.padding[1][0],
        "STEP": geometry.dilation[1],
        "DOWN": geometry.stride[1],
        "PRECISION": precision,
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
    }


def _rows_launch(op, target, geometry, dtype, precision, activation, config, eps, numbers, exchanged) -> Launch:
    config = config or config_of(op, geometry, dtype, target)
    M, N, _ = geometry.gemm(op)
    constexprs = _constexprs(geometry, precision, config) | {"UP": 1} | exchanged
    constexprs |= {"S": geometry.S, "EPS": eps, "ACTIVATION": activation}
    grid = cdiv(M, config.BM) * cdiv(N, config.BN) * constexprs["UP"], geometry.groups, geometry.N
    return Launch(conv1d.conv1d, grid, numbers, constexprs, config.num_warps, config.num_stages)


def fprop_launch(
    target: str, geometry: RowGeometry, dtype, precision, activation, config=None, eps: float = 0.0
) -> Launch:
    """Tensors: those of `conv.fprop_launch`, x in its phases and the weight as rows [groups, K, S·C]."""
    numbers = cdiv(geometry.W, geometry.stride[1]), geometry.Q
    return _rows_launch("conv1d_fprop", target, geometry, dtype, precision, activation, config, eps, numbers, {})


def dgrad_launch(
    target: str, geometry: RowGeometry, dtype, precision, activation, config=None, eps: float = 0.0
) -> Launch:
    """Tensors: as of `fprop_launch`, with dy as it lies for x, dx for y and rows [groups, C, S·K]."""
    numbers = geometry.Q, geometry.W
    taps = {"FIRST": geometry.padding[1][0], "STEP": -geometry.dilation[1], "DOWN": 1, "UP": geometry.stride[1]}
    exchanged = {"C": geometry.Kg, "K": geometry.Cg, **taps}
    return _rows_launch("conv1d_dgrad", target, geometry, dtype, precision, activation, config, eps, numbers, exchanged)


def wgrad_launch(
    target: str, geometry: RowGeometry, dtype, precision, channels_last: bool, config=None, pixel: int = 0
) -> Launch:
    """Tensors: dy, x in NHWC memory, and either dw (one split) or [splits, elements of dw] partial sums."""
    config = config or config_of("conv1d_wgrad", geometry, dtype, target)
    M, N, _ = geometry.gemm("conv1d_wgrad")
    positions = cdiv(cdiv(geometry.Q, config.SPLIT), config.BK) * config.BK  # of a split
    stride_c, stride_tap = (1, geometry.Cg) if channels_last else (geometry.S, 1)
    strides = geometry.parameters, geometry.Cg * geometry.S, stride_c, stride_tap
    splits = cdiv(geometry.Q, positions)
    grid = cdiv(M, config.BM) * cdiv(N, config.BN), geometry.S, geometry.groups * splits
    numbers = geometry.N, geometry.W, geometry.Q, positions, *strides
    constexprs = _constexprs(geometry, precision, config) | {"PIXEL": pixel or geometry.C}
    return Launch(conv1d.conv1d_wgrad, grid, numbers, constexprs, config.num_warps, config.num_stages)


def phases_launch(target: str, rows: int, W: int, S: int, first: int, step: int, stride: int) -> Launch:
    """Tensors: x [rows, W], its phases [rows, stride, ⌈W/stride⌉]."""
    length = cdiv(W, stride)
    block = min(1024, next_power_of_2(length))
    constexprs = {"S": S, "FIRST": first, "STEP": step, "STRIDE": stride, "BLOCK": block}
    return Launch(conv1d.split_phases, (rows, cdiv(length, block), 1), (W, length), constexprs, 4, 1)


def _in_phases(x: Tensor, launch: Launch) -> Tensor:
    """x as the launch reads it."""
    x = x.contiguous()
    *window, stride = (launch.constexprs[name] for name in ("S", "FIRST", "STEP", "DOWN"))
    if stride == 1:
        return x
    launch, run = prepare(x.device, phases_launch, x.numel() // x.shape[-1], x.shape[-1], *window, stride)
    phases = empty(x, (launch.grid[0], stride, launch.sizes[1]))
    run(x, phases)
    return phases


def _bind(
    make, layout, shape, x, weight, bias, geometry, activation=None, keep_pack=True, config=None, norm=ABSENT
) -> tuple[Launch, Callable[..., Tensor]]:
    """A function of (x, residual or None, room for statistics or None) that gives a result of `shape`."""
    launch, run = prepare(x.device, make, geometry, x.dtype, precision_of(x), activation, config, norm.eps)
    rows = packing.panels(weight, geometry, layout, 1, keep_pack)
    bias = None if bias is None else bias.contiguous()
    vectors = norm.vectors

    def conv(x: Tensor, residual: Tensor | None = None, moments: Tensor | None = None) -> Tensor:
        y = empty(x, shape)
        residual = None if residual is None else residual.contiguous()
        run(_in_phases(x, launch), rows, bias, y, *vectors, residual, moments)
        return y

    return launch, conv


def bind_fprop(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: RowGeometry, *options, **named):
    """See `conv.bind_fprop`."""
    return _bind(fprop_launch, "fprop", geometry.output, x, weight, bias, geometry, *options, **named)[1]


def fprop_with_moments(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: RowGeometry, keep_pack: bool, config: TileConfig | None
) -> tuple[Tensor, Tensor]:
    """See `conv.fprop_with_moments`."""
    problem = x, weight, bias, geometry, None, keep_pack, config
    launch, run = _bind(fprop_launch, "fprop", geometry.output, *problem)
    moments = empty_moments(x, geometry.N * cdiv(geometry.Q, launch.constexprs["BN"]), geometry.K)
    return run(x, None, moments), moments


def dgrad(dy: Tensor, weight: Tensor, bias: Tensor | None, geometry: RowGeometry, *options, **named) -> Tensor:
    """See `conv.dgrad`."""
    return _bind(dgrad_launch, "dgrad", geometry.input, dy, weight, bias, geometry, *options, **named)[1](dy)
