"""Batch norm behind a convolution, with a residual and an activation after it.

In training a convolution leaves the statistics of its output beside it, so that the output is read once more, not
twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..geometry import ConvGeometry
from ..launch import conv as launch
from ..launch.norm import Norm
from . import activations, conv_transpose
from .conv import (
    FpropWithMoments,
    conv2d,
    empty_result,
    finish,
    formatted,
    geometry_of,
    gives_channels_last,
    run,
    weight_of,
)
from .conv1d import conv1d, geometry_1d, image
from .conv_pool import FpropMaxPool, takes
from .library import Operator, opaque
from .max_pool import max_pool2d
from .norm import BatchMoments, batch_norm, normalize, of_batch, unsupported
from .support import autocast, fits, is_channels_last, nchw, needs_gradient, pair


class FpropWithNorm(Operator):
    """activation(norm(x ∗ weight + bias) + residual) by given statistics, in one kernel."""

    schema = (
        "fprop_with_norm(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor mean, Tensor var,"
        " Tensor? gamma, Tensor? beta, float eps, SymInt[] geometry, str? activation) -> Tensor"
    )

    @staticmethod
    def run(x, weight, bias, residual, mean, var, gamma, beta, eps, geometry, activation):
        norm = Norm(mean, var, gamma, beta, eps)
        return launch.fprop(x, weight, bias, geometry, activation, norm=norm, residual=residual)

    @staticmethod
    def fake(x, weight, bias, residual, mean, var, gamma, beta, eps, geometry, activation):
        return empty_result(x, geometry.output, geometry)


class DgradWithNorm(Operator):
    """A transposed convolution by `Dgrad`, followed by a norm of given statistics and an activation in one kernel."""

    schema = (
        "dgrad_with_norm(Tensor dy, Tensor weight, Tensor? bias, Tensor mean, Tensor var, Tensor? gamma, Tensor? beta,"
        " float eps, SymInt[] geometry, str? activation) -> Tensor"
    )

    @staticmethod
    def run(dy, weight, bias, mean, var, gamma, beta, eps, geometry, activation):
        return launch.dgrad(dy, weight, bias, geometry, activation, norm=Norm(mean, var, gamma, beta, eps))

    @staticmethod
    def fake(dy, weight, bias, mean, var, gamma, beta, eps, geometry, activation):
        return empty_result(dy, geometry.input, geometry)


class Source(NamedTuple):
    """Ways to a convolution that a batch norm follows; x, weight and bias are its `operands`.

    `run()` gives its result [N, C, H, W], `with_moments()` its mean and variance too, and `with_norm(norm, residual,
    activation)` what is left when all is done, which has no gradients.
    """

    operands: tuple[Tensor, Tensor, Tensor | None]
    run: Callable[[], Tensor]
    with_moments: Callable[[], tuple[Tensor, Tensor, Tensor]]
    with_norm: Callable[..., Tensor]


def _run(source: Source, norm: Norm, training: bool, momentum: float, residual, activation: str | None) -> Tensor:
    """activation(norm(convolution) + residual), [N, C, H, W], in the memory format of the convolution's kernels.

    `norm` has the running statistics. The arguments are such as kernels take.
    """
    if training:
        y, *statistics = source.with_moments()
        norm = of_batch(norm, *statistics, y.numel() // y.shape[1], momentum)
        return normalize(y, norm, True, residual, activation)
    tensors = *source.operands, norm.weight, norm.bias, residual
    if needs_gradient(*tensors):
        return normalize(source.run(), norm, False, residual, activation)
    return source.with_norm(norm, residual, activation)


def _source(x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvGeometry) -> Source:
    def with_moments():
        weight, keep = weight_of(w)
        return FpropWithMoments.call(x, weight, b, geometry, keep)

    def with_norm(norm, residual, activation):
        return FpropWithNorm.call(x, w, b, residual, *norm, geometry, activation)

    return Source((x, w, b), lambda: run(x, w, b, None, geometry, None), with_moments, with_norm)


@opaque
def conv2d_batch_norm(
    input, weight, bias, stride, padding, dilation, groups,
    running_mean, running_var, gamma, beta, training, momentum, eps, residual, activation, max_pool=None,
) -> Tensor:  # fmt: skip
    """See `tritonconv.functional.conv2d_batch_norm`."""
    activation = None if activation is None else activations.canonical(activation)
    x, w, b = autocast(input, weight, bias)
    geometry = geometry_of(x, w, b, stride, padding, dilation, groups)
    statistics, affine = (running_mean, running_var), (gamma, beta)
    if max_pool is not None:
        # Statistics need all of the outputs, and so do gradients of what is normalized by given ones.
        differentiable = needs_gradient(x, w, b, gamma, beta, residual)
        window, alone = pair(max_pool), not (training or differentiable) and residual is None and x.dim() == 4
        fused = alone and window is not None and takes(x, geometry, window, activation)
        if fused and not unsupported(geometry.output, x, training, statistics, affine):
            y = FpropMaxPool.call(x, w, b, *statistics, *affine, eps, geometry, window, activation)
            return y if gives_channels_last(x, w) else nchw(y)
        y = conv2d_batch_norm(
            input, weight, bias, stride, padding, dilation, groups,
            running_mean, running_var, gamma, beta, training, momentum, eps, residual, activation,
        )  # fmt: skip
        return max_pool2d(y, max_pool, None, 0, 1, False, False)
    if isinstance(geometry, str) or x.dim() != 4 or unsupported(geometry.output, x, training, statistics, affine):
        y = conv2d(input, weight, bias, stride, padding, dilation, groups, None, None)
        return batch_norm(y, *statistics, *affine, training, momentum, eps, residual, activation)
    norm, channels_last = Norm(*statistics, *affine, eps), gives_channels_last(x, w)
    return _follow(x, w, b, geometry, norm, training, momentum, residual, activation, channels_last)


@opaque
def conv1d_batch_norm(
    input, weight, bias, stride, padding, dilation, groups,
    running_mean, running_var, gamma, beta, training, momentum, eps, residual, activation, extra=(0, 0),
) -> Tensor:  # fmt: skip
    """See `tritonconv.functional.conv1d_batch_norm`."""
    x, w, b = autocast(input, weight, bias)
    options = stride, padding, dilation, groups
    geometry = geometry_1d(x, w, b, *options, extra)
    statistics, affine = (running_mean, running_var), (gamma, beta)
    unbatched = x.dim() != 3 or (residual is not None and residual.dim() != 3)
    if isinstance(geometry, str) or unbatched or unsupported(geometry.output, x, training, statistics, affine):
        y = conv1d(input, weight, bias, *options, None, None, extra)
        return batch_norm(y, *statistics, *affine, training, momentum, eps, residual, activation)
    norm = Norm(*statistics, *affine, eps)
    channels_last = is_channels_last(w.unsqueeze(-2))
    call = image(x), w, b, geometry, norm, training, momentum, image(residual), activation, channels_last
    return _follow(*call).squeeze(-2)


@opaque
def conv_transpose2d_batch_norm(
    input, weight, bias, stride, padding, output_padding, groups, dilation,
    running_mean, running_var, gamma, beta, training, momentum, eps, activation,
) -> Tensor:  # fmt: skip
    """See `tritonconv.functional.conv_transpose2d_batch_norm`."""
    options = stride, padding, output_padding, groups, dilation
    x, w, b = autocast(input, weight, bias)
    geometry = conv_transpose.geometry_of(x, w, b, *options)
    statistics, affine = (running_mean, running_var), (gamma, beta)
    fused = not isinstance(geometry, str) and x.dim() == 4
    if not fused or unsupported(geometry.input, x, training, statistics, affine):
        y = conv_transpose.conv_transpose2d(input, weight, bias, *options, None)
        return batch_norm(y, *statistics, *affine, training, momentum, eps, None, activation)

    def transposed() -> Tensor:
        return conv_transpose.run(x, w, b, geometry, None)

    def with_moments():
        y = transposed()
        return y, *BatchMoments.call(y.detach())

    def with_norm(norm, residual, activation):
        return DgradWithNorm.call(x, w, b, *norm, geometry, activation)

    activation = None if activation is None else activations.canonical(activation)
    source, norm = Source((x, w, b), transposed, with_moments, with_norm), Norm(*statistics, *affine, eps)
    y = _run(source, norm, training, momentum, None, activation)
    return formatted(y, geometry, gives_channels_last(x, w))


def _follow(
    x, w, b, geometry: ConvGeometry, norm: Norm, training, momentum, residual, activation, channels_last: bool
) -> Tensor:
    activation = None if activation is None else activations.canonical(activation)
    left = ()  # of the epilogue, to torch
    if residual is not None and not fits(residual, geometry.output, x, channels_last):
        left, residual, activation = (residual, activation), None, None
    y = _run(_source(x, w, b, geometry), norm, training, momentum, residual, activation)
    y = formatted(y, geometry, channels_last)
    return finish(y, *left) if left else y
