"""1-D convolution: a 2-D one of images of one row. Input and weight become such by views; nothing is copied.

`extra` is padding, before and after, beside that of the arguments: what `pad` or a padding module put before the
convolution. A negative number takes away what was padded, as slicing the result does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from .. import engines
from ..geometry import ConvGeometry, Pair, RowGeometry
from ..launch import conv1d as launch
from . import activations
from .conv import formatted, geometry_of, run
from .epilogue import divided, finish, is_apart, prepared, suits
from .library import opaque
from .support import autocast, fits, is_channels_last, remembered, unsupported_call, with_row


def of_kernels(geometry: ConvGeometry, x: Tensor, filters: Tensor, extra: Pair = (0, 0)) -> ConvGeometry | str:
    """`geometry` with the extra padding, as a `RowGeometry` if that is what computes it. torch lets the filters' memory
    format be that of the result."""
    return _of_kernels(geometry, not is_channels_last(filters), engines.engine_for(x.device).target(x.device), extra)


@remembered
def _of_kernels(geometry: ConvGeometry, row_memory: bool, target: str, extra: Pair) -> ConvGeometry | str:
    padding = tuple(map(sum, zip(geometry.padding[1], extra, strict=True)))
    geometry = replace(geometry, padding=(geometry.padding[0], padding))
    if geometry.Q < 1:
        return "the kernel is larger than the padded input"
    return RowGeometry.of(geometry) if row_memory and launch.takes(geometry, target) else geometry


def geometry_1d(x, w, b, stride, padding, dilation, groups, extra: Pair = (0, 0)) -> ConvGeometry | str:
    """The geometry of a call of `conv1d`, or, where it is torch that has to run it, why."""
    reason = unsupported_call(x, w)
    if reason is not None:
        return reason
    if x.dim() not in (2, 3) or w.dim() != 3:
        return f"an input of {x.dim()} dimensions with a weight of {w.dim()}"
    stride, dilation = with_row(stride, 1), with_row(dilation, 1)
    if min(extra) < 0 and stride != (1, 1):
        return f"extra_padding {extra} with stride {stride}"
    padding = padding if isinstance(padding, str) else with_row(padding, 0)
    before, after = extra
    if type(padding) is tuple and padding[1] >= 0:  # both sides as the larger one first: no input is then too small
        most = max(before, after, 0)
        padding, before, after = (0, padding[1] + most), before - most, after - most
    row, filters = x.unsqueeze(-2), w.unsqueeze(-2)
    geometry = geometry_of(row, filters, b, stride, padding, dilation, groups)
    if isinstance(geometry, str):
        return geometry
    return of_kernels(geometry, x, filters, (before, after))


def by_torch(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, extra: Pair = (0, 0)) -> Tensor:
    """The same in torch's functions."""
    before, after = extra
    x = F.pad(input, (max(before, 0), max(after, 0))) if max(extra) > 0 else input
    y = F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    return y[..., max(-before, 0) : y.shape[-1] + min(after, 0)] if min(extra) < 0 else y


@opaque
def conv1d(
    input, weight, bias, stride, padding, dilation, groups, residual, activation, extra: Pair = (0, 0), inner=None
) -> Tensor:
    """See `tritonconv.functional.conv1d`."""
    options = stride, padding, dilation, groups
    x, w, b = autocast(input, weight, bias)
    activation, inner = prepared(activation, x), activations.canonical(inner)
    if is_apart(inner, activation, x, w, b, residual):
        return finish(conv1d(input, weight, bias, *options, None, inner, extra), residual, activation)
    geometry = geometry_1d(x, w, b, *options, extra)
    if isinstance(geometry, str):
        return finish(finish(by_torch(input, weight, bias, *options, extra), None, inner), residual, activation)
    row, channels_last = image(x), is_channels_last(w.unsqueeze(-2))
    alike = residual is not None and residual.dim() == x.dim()
    adds = residual is None or (alike and fits(image(residual), geometry.output, row, channels_last))
    (added, ours), left = divided(residual, activation, adds, suits(activation, geometry.K, row, x.dim() == 3))
    y = on_rows(x, w, geometry, lambda row: run(row, w, b, geometry, image(added), ours, inner))
    return finish(y, *left)


def on_rows(x: Tensor, weight: Tensor, geometry: ConvGeometry, run: Callable[[Tensor], Tensor]) -> Tensor:
    """run(x) for x [N, C, W] or [C, W], as an image of one row, in the memory format that torch convolves into."""
    y = formatted(run(image(x)), geometry, is_channels_last(weight.unsqueeze(-2)))
    return y.squeeze(-2) if x.dim() == 3 else y[0, :, 0]


def image(x: Tensor | None) -> Tensor | None:
    """[N, C, W] or [C, W] as [N, C, 1, W]."""
    return None if x is None else x.unsqueeze(-2) if x.dim() == 3 else x.unsqueeze(-2).unsqueeze(0)


@opaque
def causal_conv1d(input, weight, bias, dilation, groups, activation) -> Tensor:
    """See `tritonconv.functional.causal_conv1d`."""
    left = dilation * (weight.shape[-1] - 1)
    return conv1d(input, weight, bias, 1, 0, dilation, groups, None, activation, (left, 0))
