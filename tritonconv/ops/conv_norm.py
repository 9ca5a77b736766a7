"""Batch norm behind a convolution, with a residual and an activation after it.

In training a convolution leaves the statistics of its output beside it, so that the output is read once more, not
twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..geometry import ConvGeometry
from ..launch.norm import Norm
from . import activations, conv_transpose
from .activations import Text
from .conv import conv2d, formatted, geometry_of, gives_channels_last, run, run_with_norm
from .conv1d import conv1d, geometry_1d, image
from .conv_pool import FpropMaxPool, takes
from .epilogue import divided, finish, is_apart, prepared, suits
from .fprop import FpropWithMoments, weight_of
from .library import opaque
from .max_pool import max_pool2d
from .norm import BatchMoments, batch_norm, normalize, of_batch, unsupported
from .support import autocast, fits, is_channels_last, nchw, needs_gradient, pair


class Source(NamedTuple):
    """Ways to a convolution that a batch norm follows; x, weight and bias are its `operands`.

    `run()` gives its result [N, C, H, W], `with_moments()` its mean and variance too, and `with_norm(norm, residual,
    activation)` what is left when all is done, which has no gradients.
    """

    operands: tuple[Tensor, Tensor, Tensor | None]
    run: Callable[[], Tensor]
    with_moments: Callable[[], tuple[Tensor, Tensor, Tensor]]
    with_norm: Callable[..., Tensor]


def _run(source: Source, norm: Norm, training: bool, momentum: float, residual, activation: Text) -> Tensor:
    """activation(norm(convolution) + residual), [N, C, H, W], in the memory format of the convolution's kernels.

    `norm` has the running statistics. The arguments are such as kernels take.
    """
    if training:
        y, *statistics = source.with_moments()
        norm = of_batch(norm, *statistics, y.numel() // y.shape[1], momentum)
        return normalize(y, norm, True, residual, activation)
    slope = activation if isinstance(activation, Tensor) else None
    if needs_gradient(*source.operands, norm.weight, norm.bias, residual, slope):
        return normalize(source.run(), norm, False, residual, activation)
    return source.with_norm(norm, residual, activation)


def _source(x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvGeometry, inner: str | None) -> Source:
    def with_moments():
        weight, keep = weight_of(w)
        return FpropWithMoments.call(x, weight, b, geometry, keep)

    def with_norm(norm, residual, activation):
        return run_with_norm(x, w, b, geometry, norm, residual, activation, inner)

    return Source((x, w, b), lambda: run(x, w, b, geometry), with_moments, with_norm)


@opaque
def conv2d_batch_norm(
    input, weight, bias, stride, padding, dilation, groups,
    running_mean, running_var, gamma, beta, training, momentum, eps, residual, activation, max_pool=None, inner=None,
) -> Tensor:  # fmt: skip
    """See `tritonconv.functional.conv2d_batch_norm`."""
    x, w, b = autocast(input, weight, bias)
    activation, inner = prepared(activation, x), activations.canonical(inner)
    geometry = geometry_of(x, w, b, stride, padding, dilation, groups)
    statistics, affine = (running_mean, running_var), (gamma, beta)
    if max_pool is not None:
        # Statistics need all of the outputs, and so do gradients of what is normalized by given ones.
        differentiable = needs_gradient(x, w, b, gamma, beta, residual)
        window, alone = pair(max_pool), not (training or differentiable) and residual is None and x.dim() == 4
        fused = alone and inner is None and window is not None and takes(x, geometry, window, activation)
        if fused and not unsupported(geometry.output, x, training, statistics, affine):
            y = FpropMaxPool.call(x, w, b, *statistics, *affine, eps, geometry, window, activation)
            return y if gives_channels_last(x, w) else nchw(y)
        y = conv2d_batch_norm(
            input, weight, bias, stride, padding, dilation, groups,
            running_mean, running_var, gamma, beta, training, momentum, eps, residual, activation, None, inner,
        )  # fmt: skip
        return max_pool2d(y, max_pool, None, 0, 1, False, False)
    apart = isinstance(geometry, str) or x.dim() != 4 or unsupported(geometry.output, x, training, statistics, affine)
    if apart or (inner is not None and training) or is_apart(inner, activation, x, w, b, gamma, beta, residual):
        y = conv2d(input, weight, bias, stride, padding, dilation, groups, None, inner)
        return batch_norm(y, *statistics, *affine, training, momentum, eps, residual, activation)
    norm, channels_last = Norm(*statistics, *affine, eps), gives_channels_last(x, w)
    return _follow(x, w, b, geometry, norm, training, momentum, residual, activation, channels_last, inner)


@opaque
def conv1d_batch_norm(
    input, weight, bias, stride, padding, dilation, groups,
    running_mean, running_var, gamma, beta, training, momentum, eps, residual, activation, extra=(0, 0), inner=None,
) -> Tensor:  # fmt: skip
    """See `tritonconv.functional.conv1d_batch_norm`."""
    x, w, b = autocast(input, weight, bias)
    options = stride, padding, dilation, groups
    geometry, inner = geometry_1d(x, w, b, *options, extra), activations.canonical(inner)
    statistics, affine = (running_mean, running_var), (gamma, beta)
    unbatched = x.dim() != 3 or (residual is not None and residual.dim() != 3)
    apart = isinstance(geometry, str) or unbatched or unsupported(geometry.output, x, training, statistics, affine)
    if apart or (inner is not None and training) or is_apart(inner, activation, x, w, b, gamma, beta, residual):
        y = conv1d(input, weight, bias, *options, None, inner, extra)
        return batch_norm(y, *statistics, *affine, training, momentum, eps, residual, activation)
    norm = Norm(*statistics, *affine, eps)
    channels_last = is_channels_last(w.unsqueeze(-2))
    call = image(x), w, b, geometry, norm, training, momentum, image(residual), activation, channels_last, inner
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
    norm = Norm(*statistics, *affine, eps)
    return _transposed(x, w, b, geometry, norm, training, momentum, activation, gives_channels_last(x, w))


@opaque
def conv_transpose1d_batch_norm(
    input, weight, bias, stride, padding, output_padding, groups, dilation,
    running_mean, running_var, gamma, beta, training, momentum, eps, activation,
) -> Tensor:  # fmt: skip
    """See `tritonconv.functional.conv_transpose1d_batch_norm`."""
    options = stride, padding, output_padding, groups, dilation
    x, w, b = autocast(input, weight, bias)
    geometry = conv_transpose.geometry_1d(x, w, b, *options)
    statistics, affine = (running_mean, running_var), (gamma, beta)
    fused = not isinstance(geometry, str) and x.dim() == 3
    if not fused or unsupported(geometry.input, x, training, statistics, affine):
        y = conv_transpose.conv_transpose1d(input, weight, bias, *options, None)
        return batch_norm(y, *statistics, *affine, training, momentum, eps, None, activation)
    norm, channels_last = Norm(*statistics, *affine, eps), is_channels_last(w.unsqueeze(-2))
    return _transposed(image(x), w, b, geometry, norm, training, momentum, activation, channels_last).squeeze(-2)


def _transposed(
    x, w, b, geometry: ConvGeometry, norm: Norm, training, momentum, activation, channels_last: bool
) -> Tensor:
    def transposed() -> Tensor:
        return conv_transpose.run(x, w, b, geometry)

    def with_moments():
        y = transposed()
        return y, *BatchMoments.call(y.detach())

    def with_norm(norm, residual, activation):
        return conv_transpose.run_with_norm(x, w, b, geometry, norm, activation)

    activation = prepared(activation, x)
    (_, ours), left = divided(None, activation, True, suits(activation, geometry.C, x, True))
    y = _run(Source((x, w, b), transposed, with_moments, with_norm), norm, training, momentum, None, ours)
    return finish(formatted(y, geometry, channels_last), *left)


def _follow(
    x, w, b, geometry: ConvGeometry, norm: Norm, training, momentum, residual, activation, channels_last: bool, inner
) -> Tensor:
    activation = prepared(activation, x)
    adds = residual is None or fits(residual, geometry.output, x, channels_last)
    ours, left = divided(residual, activation, adds, suits(activation, geometry.K, x, True))
    y = _run(_source(x, w, b, geometry, inner), norm, training, momentum, *ours)
    return finish(formatted(y, geometry, channels_last), *left)
