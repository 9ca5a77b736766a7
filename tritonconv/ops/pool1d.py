"""1-D pooling: that of images of one row. What 2-D kernels do not take goes to torch's own 1-D function."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .avg_pool import adaptive_avg_pool2d, avg_pool2d, lp_pool2d
from .library import opaque
from .max_pool import adaptive_max_pool2d, max_pool2d
from .pool import adaptive_geometry_of, geometry_of
from .support import unsupported_call, with_row

Result = Tensor | tuple[Tensor, Tensor]


def _on_rows(input: Tensor, takes: Callable[[Tensor], object], pool: Callable[[Tensor], Result]) -> Result | None:
    """`pool` of images of one row, of input [N, C, L] or [C, L]; None if `takes` gives no geometry for them."""
    if unsupported_call(input) is not None or input.dim() not in (2, 3):
        return None
    row = input.contiguous().unsqueeze(-2)  # as torch's result is, whatever the strides of its input
    if isinstance(takes(row), str):
        return None
    result = pool(row)
    return result.squeeze(-2) if isinstance(result, Tensor) else tuple(part.squeeze(-2) for part in result)


def _pooled(input, pool, kernel_size, stride, padding, dilation, ceil_mode) -> Result | None:
    """`pool(rows, window, stride, padding, dilation)`."""
    stride = kernel_size if stride in (None, (), []) else stride
    window = [with_row(kernel_size, 1), with_row(stride, 1), with_row(padding, 0), with_row(dilation, 1)]
    if None in window:
        return None
    return _on_rows(input, lambda row: geometry_of(row, *window, ceil_mode), lambda row: pool(row, *window))


def _resized(input, pool, output_size) -> Result | None:
    size = with_row(output_size, 1)
    return size and _on_rows(input, lambda row: adaptive_geometry_of(row, size), lambda row: pool(row, size))


@opaque
def max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices) -> Result:
    """See `tritonconv.functional.max_pool1d`."""
    window = kernel_size, stride, padding, dilation, ceil_mode
    result = _pooled(input, lambda row, *given: max_pool2d(row, *given, ceil_mode, return_indices), *window)
    return F.max_pool1d(input, *window, return_indices) if result is None else result


@opaque
def avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad) -> Tensor:
    """See `tritonconv.functional.avg_pool1d`."""

    def pool(row, window, stride, padding, dilation):
        return avg_pool2d(row, window, stride, padding, ceil_mode, count_include_pad, None)

    result = _pooled(input, pool, kernel_size, stride, padding, 1, ceil_mode)
    # No keywords: torch's function knows none.
    torchs = input, kernel_size, stride if stride is not None else kernel_size, padding, ceil_mode, count_include_pad
    return F.avg_pool1d(*torchs) if result is None else result


@opaque
def lp_pool1d(input, norm_type, kernel_size, stride, ceil_mode) -> Tensor:
    """See `tritonconv.functional.lp_pool1d`."""

    def pool(row, window, stride, padding, dilation):
        return lp_pool2d(row, norm_type, window, stride, ceil_mode)

    result = _pooled(input, pool, kernel_size, stride, 0, 1, ceil_mode) if type(kernel_size) is int else None
    return F.lp_pool1d(input, norm_type, kernel_size, stride, ceil_mode) if result is None else result


@opaque
def adaptive_max_pool1d(input, output_size, return_indices) -> Result:
    """See `tritonconv.functional.adaptive_max_pool1d`."""
    result = _resized(input, lambda row, size: adaptive_max_pool2d(row, size, return_indices), output_size)
    return F.adaptive_max_pool1d(input, output_size, return_indices) if result is None else result


@opaque
def adaptive_avg_pool1d(input, output_size) -> Tensor:
    """See `tritonconv.functional.adaptive_avg_pool1d`."""
    result = _resized(input, adaptive_avg_pool2d, output_size)
    return F.adaptive_avg_pool1d(input, output_size) if result is None else result
