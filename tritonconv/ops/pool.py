"""What the poolings share: checks, geometries, and the images that kernels see."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import AdaptiveGeometry, Pair, PoolGeometry, adaptive_geometry
from .support import (
    is_channels_last,
    is_empty,
    nchw,
    operand,
    pair,
    remembered,
    too_many_pixels,
    unsupported_call,
    unsupported_operands,
)

Geometry = PoolGeometry | AdaptiveGeometry
_SIZES = int, torch.SymInt  # the latter where a compiler keeps sizes open


def _is_nhwc(input: Tensor) -> bool:
    """Whether the kernels see `input` [N, C, H, W] as it is.

    Else they see each plane as an image of one channel, so that no layout has to be converted; but on a CPU several
    channels side by side, which fill vectors, are worth the conversion.
    """
    if input.layout is not torch.strided or input.dim() != 4:
        return False
    return is_channels_last(input) or (input.device.type == "cpu" and input.shape[1] >= 8)


def _sizes(input: Tensor) -> tuple[int, ...]:
    """[N, C, H, W] of `images(input)`."""
    return tuple(input.shape) if _is_nhwc(input) else (math.prod(input.shape[:-2]), 1, *input.shape[-2:])


def images(input: Tensor) -> Tensor:
    """`input` [(N, )C, H, W] as images [N, C, H, W] for the kernels."""
    return input if _is_nhwc(input) else input.reshape(-1, 1, *input.shape[-2:])


def like_input(result: Tensor, input: Tensor) -> Tensor:
    """What was made of `images(input)`, with the dimensions and the memory format of a result for `input`."""
    if _is_nhwc(input):
        return result if is_channels_last(input) else nchw(result)
    # Flat first: a view of the same shape would keep strides, of sizes of 1, that are not NCHW's.
    return result.view(-1).view(*input.shape[:-2], *result.shape[2:])


def _unsupported(input) -> str | None:
    """Why no kernel pools this operand, or None if one does."""
    reason = unsupported_operands(input)
    if reason is None and (len(input.shape) not in (3, 4) or is_empty(*input.shape)):
        reason = f"nothing to compute for input {tuple(input.shape)}"
    return reason


def _countable(geometry: Geometry) -> Geometry | str:
    return too_many_pixels(geometry.N, geometry.H * geometry.W, geometry.P * geometry.Q) or geometry


@remembered
def _geometry(input, sizes, window, stride, padding, dilation, ceil_mode) -> PoolGeometry | str:
    """The geometry of a pooling of this operand, or why there is no kernel for it."""
    reason = _unsupported(input)
    if reason is not None:
        return reason
    if window is None or stride is None or padding is None or dilation is None or type(ceil_mode) is not bool:
        return "kernel_size, stride, padding and dilation are not all integers"
    if min(window) < 1 or min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        return f"kernel_size {window}, stride {stride}, padding {padding}, dilation {dilation}"
    if any(2 * pad > dil * (size - 1) + 1 for pad, dil, size in zip(padding, dilation, window, strict=True)):
        return f"padding {padding} is more than half of the window"
    geometry = PoolGeometry(*sizes, *window, stride, padding, dilation, ceil_mode)
    if is_empty(geometry.P, geometry.Q):
        return "the window is larger than the padded input"
    return _countable(geometry)


def is_window(kernel_size) -> bool:
    """Whether torch's functions that are written in Python take `kernel_size`: no sequence of one number."""
    return type(kernel_size) is int or (isinstance(kernel_size, (tuple, list)) and len(kernel_size) == 2)


def geometry_of(input, kernel_size, stride, padding, dilation, ceil_mode) -> PoolGeometry | str:
    """The geometry of a call with these arguments, or, where it is torch that has to run it, why."""
    reason = unsupported_call(input)
    if reason is not None:
        return reason
    window = pair(kernel_size)
    stride = window if stride in (None, [], ()) else pair(stride)
    return _geometry(operand(input), _sizes(input), window, stride, pair(padding), pair(dilation), ceil_mode)


@remembered
def _resizing(input, sizes, output) -> Geometry | str:
    reason = _unsupported(input)
    if reason is not None:
        return reason
    if output is None or is_empty(*output):
        return "output_size is not of positive integers"
    _, _, H, W = sizes
    if any((size + 1) * (count + 1) >= 2**31 for size, count in zip((H, W), output, strict=True)):
        return "the windows' limits, products of two sizes, reach 2**31"
    return _countable(adaptive_geometry(*sizes, *output))


def adaptive_geometry_of(input, output_size) -> Geometry | str:
    """The geometry of an adaptive pooling, or, where it is torch that has to run it, why."""
    reason = unsupported_call(input)
    return _resizing(operand(input), _sizes(input), _output(output_size, input)) if reason is None else reason


def _output(output_size, input: Tensor) -> Pair | None:
    """A number for both axes, or for each one or None for the input's; None if it is not that."""
    if type(output_size) is int:
        return output_size, output_size
    if not isinstance(output_size, (tuple, list)) or len(output_size) != 2 or input.dim() < 2:
        return None
    both = zip(output_size, input.shape[-2:], strict=True)
    output = tuple(size if wanted is None else wanted for wanted, size in both)
    return output if all(type(size) in _SIZES for size in output) else None


def unpool_sizes_of(input, indices, kernel_size, stride, padding, output_size) -> tuple[int, ...] | str:
    """[N, C, H, W] of the result of `max_unpool2d`, or, where it is torch that has to run it, why."""
    reason = unsupported_call(input, indices) or _unsupported(operand(input))
    if reason is not None:
        return reason
    if indices.dtype is not torch.int64 or indices.shape != input.shape or indices.device != input.device:
        return "the indices are not int64 of the input's shape"
    if torch.are_deterministic_algorithms_enabled() or torch.is_autocast_enabled(input.device.type):
        return "torch refuses to run it deterministically; under autocast on a CPU it does in float32"
    window, padding = pair(kernel_size), pair(padding)
    stride = window if stride is None else pair(stride)
    if not is_window(kernel_size) or window is None or stride is None or padding is None:
        return "kernel_size, stride and padding are not all integers"
    N, C, P, Q = _sizes(input)
    H, W = F._unpool_output_size(input, window, stride, padding, output_size)
    if type(H) not in _SIZES or type(W) not in _SIZES or is_empty(H, W):
        return "output_size is not of positive integers"
    return N, C, H, W
