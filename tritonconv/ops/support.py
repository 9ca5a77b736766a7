"""Which tensors the kernels take. What they do not take goes to torch, which then also raises its own errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import engines
from ..geometry import Pair

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def unsupported(*tensors: Tensor) -> str | None:
    """Why kernels cannot run on these tensors together, or None if they can."""
    first = tensors[0]
    for tensor in tensors:
        if type(tensor) is not Tensor and type(tensor) is not Parameter:
            return f"{type(tensor).__name__} is not a plain tensor"
        if tensor.dtype is not first.dtype:
            return f"mixed dtypes {first.dtype} and {tensor.dtype}"
        if tensor.device != first.device:
            return f"mixed devices {first.device} and {tensor.device}"
        if tensor.layout is not torch.strided:
            return f"layout {tensor.layout}"
    if first.dtype not in DTYPES:
        return f"dtype {first.dtype}"
    if engines.engine_for(first.device) is None:
        return f"no engine runs on {first.device.type} tensors"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "a compiler is tracing the call"
    # Kernels see values only: neither tangents nor the levels of vmap and grad.
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "a torch.func transform or forward-mode differentiation is active"
    return None


def pair(value: int | Sequence[int]) -> Pair | None:
    """An argument given for both axes at once or for each, as (height, width); None if it is not of integers."""
    values = (value,) * 2 if type(value) is int else tuple(value) if isinstance(value, (tuple, list)) else ()
    values = values * 2 if len(values) == 1 else values
    return values if len(values) == 2 and all(type(v) is int for v in values) else None


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors as torch's operators of reduced precision get them: under autocast in its dtype, float64 excepted."""
    device = getattr(tensors[0], "device", None)
    if device is None or not torch.is_autocast_enabled(device.type):
        return tensors
    dtype = torch.get_autocast_dtype(device.type)

    def cast(tensor):
        exempt = tensor is None or tensor.dtype is torch.float64 or not tensor.is_floating_point()
        return tensor if exempt else tensor.to(dtype)

    return tuple(map(cast, tensors))


def is_channels_last(x: Tensor) -> bool:
    """Whether torch takes a 4-D x to be in channels_last memory: judged by strides, as C++'s `suggest_memory_format` does.

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
