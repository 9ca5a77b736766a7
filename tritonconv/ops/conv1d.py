"""1-D convolution: a 2-D one of images of one row. Input and weight become such by views; nothing is copied."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from ..geometry import ConvGeometry
from . import activations
from .conv import finish, geometry_of, run
from .support import autocast, is_channels_last, nchw, unsupported_call


def _with_row(value: int | tuple[int], row: int) -> tuple[int, int] | None:
    """An argument for one axis as one for (height, width); None if it is not an integer."""
    value = value if isinstance(value, (tuple, list)) else (value,)
    return (row, *value) if len(value) == 1 and type(value[0]) is int else None


def _geometry(x, w, b, stride, padding, dilation, groups) -> ConvGeometry | str:
    """The geometry of a call of `conv1d`, or, where it is torch that has to run it, why."""
    reason = unsupported_call(x, w)
    if reason is not None:
        return reason
    if x.dim() not in (2, 3) or w.dim() != 3:
        return f"an input of {x.dim()} dimensions with a weight of {w.dim()}"
    stride, dilation = _with_row(stride, 1), _with_row(dilation, 1)
    padding = padding if isinstance(padding, str) else _with_row(padding, 0)
    return geometry_of(x.unsqueeze(-2), w.unsqueeze(-2), b, stride, padding, dilation, groups)


def _run(x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvGeometry, activation: str | None) -> Tensor:
    row = x.unsqueeze(-2)
    y = run(row if x.dim() == 3 else row.unsqueeze(0), w, b, None, geometry, activation)
    # Unlike that of a 2-D convolution, torch's result has the input's memory format in no case.
    y = (y if is_channels_last(w.unsqueeze(-2)) else nchw(y)).squeeze(2)
    return y if x.dim() == 3 else y.squeeze(0)


def conv1d(input, weight, bias, stride, padding, dilation, groups, activation) -> Tensor:
    """See `tritonconv.functional.conv1d`."""
    activation = None if activation is None else activations.canonical(activation)
    x, w, b = autocast(input, weight, bias)
    geometry = _geometry(x, w, b, stride, padding, dilation, groups)
    if isinstance(geometry, str):
        return finish(F.conv1d(input, weight, bias, stride, padding, dilation, groups), None, activation)
    return _run(x, w, b, geometry, activation)


def causal_conv1d(input, weight, bias, dilation, groups, activation) -> Tensor:
    """See `tritonconv.functional.causal_conv1d`."""
    activation = None if activation is None else activations.canonical(activation)
    x, w, b = autocast(input, weight, bias)
    left = dilation * (weight.shape[-1] - 1)
    geometry = _geometry(x, w, b, 1, left, dilation, groups)
    if isinstance(geometry, str):
        y = F.conv1d(F.pad(input, (left, 0)), weight, bias, dilation=dilation, groups=groups)
        return finish(y, None, activation)
    return _run(x, w, b, replace(geometry, padding=((0, 0), (left, 0))), activation)
