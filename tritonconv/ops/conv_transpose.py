"""Transposed convolution: the data gradient of a convolution, run forward. Its operator is that convolution's `Dgrad`.

Sizes carry the names of that convolution: the input is its output [N, K, P, Q], the result its input [N, C, H, W].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..geometry import ConvGeometry, input_size
from ..launch.norm import ABSENT, Norm
from .activations import Text
from .conv import on_images
from .conv1d import of_kernels, on_rows
from .epilogue import activated, divided, finish, is_separate, prepared, suits, with_slopes
from .fprop import Dgrad, DgradWithNorm, weight_of
from .library import opaque
from .support import (
    autocast,
    is_empty,
    operand,
    pair,
    remembered,
    too_many_pixels,
    unsupported_call,
    unsupported_operands,
    with_row,
)


@remembered
def _geometry(input, weight, bias, stride, padding, output_padding, groups, dilation) -> ConvGeometry | str:
    """The geometry of the convolution behind a call with these operands, or why there is no kernel for it."""
    reason = unsupported_operands(input, weight, bias)
    if reason is not None:
        return reason
    if None in (stride, padding, output_padding, dilation) or type(groups) is not int:
        return "stride, padding, output_padding, dilation and groups are not all integers"
    if len(input.shape) not in (3, 4) or len(weight.shape) != 4:
        return f"an input of {len(input.shape)} dimensions with a weight of {len(weight.shape)}"
    N, K, P, Q = (1, *input.shape)[-4:]
    Cg, *window = weight.shape[1:]
    if is_empty(N, K, P, Q, Cg, *window):
        return f"nothing to compute for input {tuple(input.shape)} and weight {tuple(weight.shape)}"
    C = groups * Cg
    if groups < 1 or K % groups or weight.shape[0] != K or (bias is not None and bias.shape != (C,)):
        return f"{K} channels in {groups} groups do not fit weight {tuple(weight.shape)} and bias"
    if min(*stride, *dilation) < 1 or min(*padding, *output_padding) < 0:
        return f"stride {stride}, dilation {dilation}, padding {padding}, output_padding {output_padding}"
    # torch also takes one below the dilation, which then adds windows and not pixels beyond the last window.
    if any(slack >= step for slack, step in zip(output_padding, stride, strict=True)):
        return f"output_padding {output_padding} with stride {stride}"
    H, W = map(input_size, (P, Q), window, stride, padding, dilation, output_padding)
    if is_empty(H, W):
        return "the padding leaves no output"
    (top, left) = padding
    geometry = ConvGeometry(N, C, H, W, K, *window, stride, ((top, top), (left, left)), dilation, groups)
    return too_many_pixels(N, H * W, P * Q) or geometry


def geometry_of(input, weight, bias, stride, padding, output_padding, groups, dilation) -> ConvGeometry | str:
    """The geometry behind a call of `conv_transpose2d`, or, where it is torch that has to run it, why."""
    reason = unsupported_call(input, weight) if bias is None else unsupported_call(input, weight, bias)
    if reason is not None:
        return reason
    pairs = pair(stride), pair(padding), pair(output_padding)
    return _geometry(operand(input), operand(weight), operand(bias), *pairs, groups, pair(dilation))


def geometry_1d(x, w, b, stride, padding, output_padding, groups, dilation) -> ConvGeometry | str:
    """The same of `conv_transpose1d`, as a convolution of images of one row."""
    reason = unsupported_call(x, w)
    if reason is not None:
        return reason
    if x.dim() not in (2, 3) or w.dim() != 3:
        return f"an input of {x.dim()} dimensions with a weight of {w.dim()}"
    row, filters = x.unsqueeze(-2), w.unsqueeze(-2)
    sizes = with_row(stride, 1), with_row(padding, 0), with_row(output_padding, 0)
    geometry = geometry_of(row, filters, b, *sizes, groups, with_row(dilation, 1))
    return geometry if isinstance(geometry, str) else of_kernels(geometry, x, filters)


@opaque
def conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation, activation) -> Tensor:
    """See `tritonconv.functional.conv_transpose1d`."""
    options = stride, padding, output_padding, groups, dilation
    x, w, b = autocast(input, weight, bias)
    activation = prepared(activation, x)
    geometry = geometry_1d(x, w, b, *options)
    if isinstance(geometry, str):
        return finish(F.conv_transpose1d(input, weight, bias, *options), None, activation)
    (_, ours), left = divided(None, activation, True, suits(activation, geometry.C, x, x.dim() == 3))
    return finish(on_rows(x, w, geometry, lambda row: run(row, w, b, geometry, ours)), *left)


@opaque
def conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation, activation) -> Tensor:
    """See `tritonconv.functional.conv_transpose2d`."""
    options = stride, padding, output_padding, groups, dilation
    x, w, b = autocast(input, weight, bias)
    activation = prepared(activation, x)
    geometry = geometry_of(x, w, b, *options)
    if isinstance(geometry, str):
        return finish(F.conv_transpose2d(input, weight, bias, *options), None, activation)
    (_, ours), left = divided(None, activation, True, suits(activation, geometry.C, x, x.dim() == 4))
    return finish(on_images(x, w, lambda x: run(x, w, b, geometry, ours)), *left)


def run(x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvGeometry, activation: Text = None) -> Tensor:
    """activation(x transposed-convolved with w, + b), [N, C, H, W] in the memory format of the geometry's kernels."""
    kept, keep = weight_of(w)
    if is_separate(activation, x, w, b):
        return activated(Dgrad.call(x, kept, b, geometry, None, keep), activation)
    if isinstance(activation, Tensor):
        return run_with_norm(x, w, b, geometry, ABSENT, activation)
    return Dgrad.call(x, kept, b, geometry, activation, keep)


def run_with_norm(x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvGeometry, norm: Norm, activation: Text):
    """activation(norm(x transposed-convolved with w, + b)), without gradients, by given statistics."""
    norm, text = with_slopes(norm, activation)
    return DgradWithNorm.call(x, w, b, *norm, geometry, text)
