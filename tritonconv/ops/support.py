"""Which calls the kernels take. What they do not take goes to torch, which then also raises its own errors."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad, profiler
from torch.nn import Parameter

from .. import engines
from ..geometry import Pair
from ..launch.common import is_channels_last

_NOWHERE = torch.device("meta")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Operand(NamedTuple):
    """What the choice of kernels depends on; hashable, so that a call's checks are made once for all calls like it."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    layout: torch.layout


def operand(tensor: Tensor | None) -> Operand | None:
    return None if tensor is None else Operand(tensor.shape, tensor.dtype, tensor.device, tensor.layout)


def is_stand_in(tensor: Tensor) -> bool:
    """Whether a compiler, which records what is done with it, put it in a tensor's place."""
    return type(tensor) is FakeTensor or type(tensor) is FunctionalTensor


def is_input(tensor: Tensor) -> bool:
    """Whether autograd knows of nothing that made it; that of a compiler's stand-in is then an error."""
    return tensor.is_leaf or (is_stand_in(tensor) and tensor.grad_fn.name() == "torch::autograd::Error")


def remembered(function: Callable) -> Callable:
    """`function`, computed once for the same arguments. Sizes that a compiler keeps open have no hash: it is then
    computed at every call."""
    cached = functools.lru_cache(maxsize=4096)(function)

    @functools.wraps(function)
    def call(*args):
        try:
            return cached(*args)
        except TypeError:
            return function(*args)

    return call


class _Calls(threading.local):
    """Of this thread. recorded: whether they are, to be repeated. asked: whether they are only looked at. inside:
    whether they are in a model's interior."""

    recorded = False
    asked = False
    inside = False


calls = _Calls()


def is_listened_to() -> bool:
    """Whether a mode listens to torch's operators, which then has to hear of ours. Who records calls listens to what
    is in these."""
    return torch._C._len_torch_dispatch_stack() > 0 and not calls.recorded


def is_profiled() -> bool:
    """Whether torch's profiler runs, which is to show our operators by their names."""
    return profiler._is_profiler_enabled


def unsupported_now() -> str | None:
    """Why kernels cannot run at this moment, whatever they are given, or None if they can."""
    if torch.jit.is_tracing():
        return "torch.jit is tracing the call"
    # A kernel sees values only: neither tangents nor the levels of vmap and grad.
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "a torch.func transform or forward-mode differentiation is active"
    return None


def unsupported_call(*tensors: Tensor) -> str | None:
    """Why kernels cannot run on these tensors at this moment, or None if they can."""
    for tensor in tensors:
        if type(tensor) is not Tensor and type(tensor) is not Parameter:
            if not is_stand_in(tensor):
                return f"{type(tensor).__name__} is not a plain tensor"
            if torch.compiler.is_exporting():
                return "what is exported is to run where this project is absent"
    if engines.engine_for(tensors[0].device) is None:
        return f"no engine runs on {tensors[0].device.type} tensors"
    return unsupported_now()


# Where a compiler keeps sizes open, each comparison restricts what its graph serves: so none of sizes with each other.


def is_empty(*sizes: int) -> bool:
    return any(size < 1 for size in sizes)


def too_many_pixels(N: int, *areas: int) -> str | None:
    """Why no kernel counts the pixels of N images, or None if one does."""
    return "2**31 pixels or more" if any(N * area >= 2**31 for area in areas) else None


def unsupported_operands(first: Operand, *others: Operand | None) -> str | None:
    """Why no kernel exists for these operands, or None if one does."""
    if first.dtype not in DTYPES:
        return f"dtype {first.dtype}"
    for other in (first, *others):
        if other is not None and (other.layout is not torch.strided or other[1:] != first[1:]):
            return f"{other.dtype} in {other.layout} on {other.device} beside {first.dtype} on {first.device}"
    return None


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether what is made of these tensors will be differentiated."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def pair(value: int | Sequence[int]) -> Pair | None:
    """An argument given for both axes at once or for each, as (height, width); None if it is not of integers."""
    if type(value) is int:
        return value, value
    values = tuple(value) if isinstance(value, (tuple, list)) else ()
    values = values * 2 if len(values) == 1 else values
    return values if len(values) == 2 and all(type(v) is int for v in values) else None


def sides(padding: object) -> tuple[Pair, Pair] | None:
    """The padding ((top, bottom), (left, right)), if it is given for each side."""
    if not isinstance(padding, (tuple, list)) or [type(side) in (tuple, list) for side in padding] != [True, True]:
        return None
    down, across = map(pair, padding)
    return None if down is None or across is None else (down, across)


def with_row(value: int | Sequence[int], row: int) -> Pair | None:
    """An argument for one axis as one for (height, width); None if it is not an integer."""
    value = value if isinstance(value, (tuple, list)) else (value,)
    return (row, *value) if len(value) == 1 and type(value[0]) is int else None


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors as autocast hands them to torch's operators of reduced precision; float64 stays as it is."""
    device = getattr(tensors[0], "device", _NOWHERE).type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor):
        exempt = tensor is None or tensor.dtype is torch.float64 or not tensor.is_floating_point()
        return tensor if exempt else tensor.to(dtype)

    return tuple(map(cast, tensors))


def nchw(y: Tensor) -> Tensor:
    """y in NCHW memory. A clone even where y is contiguous already, by sizes of 1: only then are the strides NCHW's."""
    return y.clone(memory_format=torch.contiguous_format)


def fits(residual: Tensor, shape: tuple[int, ...], like: Tensor, channels_last: bool) -> bool:
    """Whether a kernel can add `residual` to its output of this shape and memory format, of the dtype of `like`."""
    return (
        unsupported_call(residual) is None
        and residual.shape == shape
        and operand(residual)[1:] == operand(like)[1:]
        and (calls.inside or is_channels_last(residual) == channels_last)
    )
