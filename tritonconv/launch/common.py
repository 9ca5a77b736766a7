"""What every family's launches share: the config, the bound kernel, memory formats."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor
from triton import cdiv

import autotune

from .. import configs, engines, tuned  # noqa: F401 (whose entries are looked up)
from ..configs import Geometry, TileConfig
from ..configs.tile import MACHINES, kind_of
from ..engines import Engine, Launch
from ..geometry import AdaptiveGeometry, ConvGeometry, PoolGeometry
from ..kernels import split
from .room import empty, lasting

Bound = tuple[Launch, Callable[..., None]]
_SUMS = 1024  # elements that a program of `sum_splits` takes at a time


def config_of(op: str, geometry: Geometry, dtype: torch.dtype, target: str) -> TileConfig:
    """The stored config of the problem, else the predicted one."""
    stored = autotune.lookup(key_of(op, geometry, dtype, target))
    return configs.space(op, geometry, dtype, target)[0] if stored is None else TileConfig(**stored)


def key_of(op: str, geometry: Geometry, dtype: torch.dtype, target: str) -> dict[str, object]:
    """What the store knows a problem by."""
    return {"op": op, "dtype": str(dtype).removeprefix("torch."), "target": target, **asdict(geometry)}


@functools.lru_cache(maxsize=4096)
def algorithm_of(op: str, geometry: ConvGeometry, dtype: torch.dtype, target: str) -> str:
    """How to compute "fprop" or "dgrad", as stored under "fprop_algorithm", else as predicted."""
    if len(configs.algorithms(op, geometry, dtype, target)) == 1:
        return "gemm"
    stored = autotune.lookup(key_of(f"{op}_algorithm", geometry, dtype, target))
    return configs.algorithm(op, geometry, dtype, target) if stored is None else stored["algorithm"]


def window(geometry: ConvGeometry | PoolGeometry, padding: tuple[int, int]) -> dict[str, int]:
    """The constexprs that say which pixels a window covers; `padding` is (top, left)."""
    names = ("R", "S", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DIL_H", "DIL_W")
    return dict(zip(names, (geometry.R, geometry.S, *geometry.stride, *padding, *geometry.dilation), strict=True))


def sizes(geometry: ConvGeometry | PoolGeometry | AdaptiveGeometry) -> tuple[int, ...]:
    return geometry.N, geometry.H, geometry.W, geometry.P, geometry.Q


@functools.lru_cache(maxsize=4096)
def _bind(engine: Engine, device: torch.device, make: Callable[..., Launch], *problem) -> Bound:
    launch = make(engine.target(device), *problem)
    return launch, engine.bind(launch)


def prepare(device: torch.device, make: Callable[..., Launch], *problem) -> Bound:
    return _bind(engines.engine_for(device), device, make, *problem)


def forget() -> None:
    """Makes the next launch of each problem ask for its config again: a better one may have been stored."""
    _bind.cache_clear()
    algorithm_of.cache_clear()


def precision_of(x: Tensor) -> str:
    if x.dtype is not torch.float32:
        return "ieee"
    # The flag is cuDNN's: AMD GPUs, of which few know TF32, convolve in true float32.
    cudnn = engines.engine_for(x.device).target(x.device).startswith("sm_")
    return "tf32" if cudnn and torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def is_channels_last(x: Tensor) -> bool:
    """Whether torch takes a 4-D x to be in channels_last memory: judged by strides, as its `suggest_memory_format`.

    Strides grow in the order C, W, H, N; where sizes of 1 leave NCHW possible too, it is NCHW.
    """
    sizes, strides = x.shape, x.stride()
    if strides[1] == 0:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        if sizes[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * sizes[axis]
    return True


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def empty_nhwc(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return empty(like, shape, dtype, torch.channels_last)


def accumulator_of(x: Tensor) -> torch.dtype:
    """What kernels sum elements of x in."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def sum_splits_launch(target: str, splits: int, size: int) -> Launch:
    """Tensors: partial [splits, size], out [size]."""
    machine, together = MACHINES[kind_of(target)], 1
    while together < min(machine.together, splits) and cdiv(size, _SUMS // together) < machine.programs:
        together *= 2
    block = _SUMS // together
    constexprs = {"TOGETHER": together, "BLOCK": block}
    return Launch(split.sum_splits, (cdiv(size, block), 1, 1), (splits, size), constexprs, 4, 1)


def sum_splits(partial: Tensor, out: Tensor) -> None:
    """out = Σ partial[split], always in the same order; partial [splits, elements of out]."""
    _, run = prepare(out.device, sum_splits_launch, len(partial), out.numel())
    run(partial, out)


class _Scratch(threading.local):
    def __init__(self):
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}


_scratch = _Scratch()


def scratch(name: str, like: Tensor, size: int) -> Tensor:
    """Room for at least `size` accumulators, until the thread asks for room of this name again.

    On a CPU fresh memory costs a page fault every 4 KiB, which is more than to write it: there it is what the thread
    had before. Who listens to torch's operators gets to know of memory of its own, though.
    """
    dtype = accumulator_of(like)
    if like.device.type != "cpu" or torch._C._len_torch_dispatch_stack():
        return torch.empty(size, dtype=dtype, device=like.device)
    room = _scratch.held.get((name, dtype))
    if room is None or room.numel() < size:
        room = _scratch.held[name, dtype] = lasting((size,), dtype, like.device)
    return room


def summed(run: Callable[[Tensor], None], splits: int, out: Tensor) -> None:
    """Runs what writes `out` or, of several splits, partial sums [splits, elements of out], and adds these up."""
    if splits == 1:
        run(out)
        return
    size = splits * out.numel()
    partial = scratch("partial", out, size)[:size].view(splits, -1)
    run(partial)
    sum_splits(partial, out)
