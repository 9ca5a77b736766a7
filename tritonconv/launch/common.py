"""What every family's launches share: the config, the bound kernel, NHWC tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

import autotune

from .. import configs, engines
from ..configs import TileConfig
from ..engines import Engine, Launch
from ..geometry import ConvGeometry, PoolGeometry

Geometry = ConvGeometry | PoolGeometry
Bound = tuple[Launch, Callable[..., None]]


def config_of(op: str, geometry: Geometry, dtype: torch.dtype, target: str) -> TileConfig:
    """The stored config of the problem, else the predicted one."""
    key = {"op": op, "dtype": str(dtype).removeprefix("torch."), "target": target, **asdict(geometry)}
    stored = autotune.lookup(key)
    return configs.space(op, geometry, dtype, target)[0] if stored is None else TileConfig(**stored)


def window(geometry: Geometry, padding: tuple[int, int]) -> dict[str, int]:
    """The constexprs that say which pixels a window covers; `padding` is (top, left)."""
    names = ("R", "S", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DIL_H", "DIL_W")
    return dict(zip(names, (geometry.R, geometry.S, *geometry.stride, *padding, *geometry.dilation), strict=True))


def sizes(geometry: Geometry) -> tuple[int, ...]:
    return geometry.N, geometry.H, geometry.W, geometry.P, geometry.Q


@functools.lru_cache(maxsize=4096)
def _bind(engine: Engine, device: torch.device, make: Callable[..., Launch], *problem) -> Bound:
    launch = make(engine.target(device), *problem)
    return launch, engine.bind(launch)


def prepare(device: torch.device, make: Callable[..., Launch], *problem) -> Bound:
    return _bind(engines.engine_for(device), device, make, *problem)


def precision_of(x: Tensor) -> str:
    # The flag is cuDNN's: AMD GPUs, of which few know TF32, convolve in true float32.
    cudnn = x.is_cuda and torch.version.hip is None
    tf32 = cudnn and x.dtype is torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def empty_nhwc(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)
