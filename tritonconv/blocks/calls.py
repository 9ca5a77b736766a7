"""What a block of convolution calls: the name of a function of `functional`, its arguments, its options."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..geometry import Pair
from ..ops.activations import Text

Call = tuple[str, tuple, dict]


def convolution(
    conv: nn.Conv1d | nn.Conv2d,
    norm: nn.Module | tuple | None,
    input: Tensor,
    residual: Tensor | None,
    activation: Text,
    max_pool: Pair | None = None,
    extra_padding: tuple[int, ...] = (),
    inner: str | None = None,
) -> Call:
    """activation(norm(inner(conv(input))) + residual), max-pooled in windows side by side. In training it counts the
    batch. `extra_padding` is as `F.pad` takes it; negative numbers, of 1-D ones, take some of the convolution's own
    away."""
    op = "conv1d" if isinstance(conv, nn.Conv1d) else "conv2d"
    window = conv.stride, padding_of(conv, extra_padding), conv.dilation, conv.groups
    options = {"residual": residual, "activation": activation}
    if max_pool is not None:
        options["max_pool"] = max_pool
    if op == "conv1d" and any(extra_padding):
        options["extra_padding"] = extra_padding
    if inner is not None:
        options["inner"] = inner
    if norm is None:
        return op, (input, conv.weight, conv.bias, *window), options
    return f"{op}_batch_norm", (input, conv.weight, conv.bias, *statistics(norm), *window), options


def padding_of(conv: nn.Conv1d | nn.Conv2d, extra: tuple[int, ...]) -> str | tuple:
    """Its padding; of a 2-D one with the extra padding."""
    return conv.padding if isinstance(conv, nn.Conv1d) or not any(extra) else widened(conv.padding, extra)


def widened(padding: Pair, extra: tuple[int, ...]) -> tuple[Pair, Pair]:
    """The padding ((top, bottom), (left, right)) of a 2-D convolution of an input that `F.pad` padded by `extra`."""
    left, right, top, bottom = (*extra, 0, 0)[:4]
    down, across = padding
    return (down + top, down + bottom), (across + left, across + right)


def are_statistics(norm: nn.Module | tuple, conv: nn.Conv1d | nn.Conv2d, input: Tensor) -> bool:
    """Whether `norm` does to outputs of `conv` as batch norm does: a scale and a shift may have any shape or dtype."""
    if isinstance(norm, nn.Module) or len(norm) != 2:
        return True
    scale, shift = norm
    per_channel = scale.shape == shift.shape == (1, conv.out_channels, *(1 for _ in input.shape[2:]))
    return per_channel and scale.dtype == shift.dtype == input.dtype


def statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d | tuple) -> tuple:
    """What `norm` hands to `batch_norm` after the input; counts the batch, as its forward does. A tuple is that
    already, or a scale and a shift."""
    if isinstance(norm, tuple):
        if len(norm) != 2:
            return norm
        scale, shift = map(Tensor.flatten, norm)
        eps = 2.0**-8  # any that every dtype adds up to one with the variance
        return torch.zeros_like(scale), torch.full_like(scale, 1 - eps), scale, shift, False, 0.0, eps
    momentum = norm.momentum or 0.0
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # cumulative moving average
            momentum = 1.0 / float(norm.num_batches_tracked)
    training = norm.training or (norm.running_mean is None and norm.running_var is None)
    tracked = not norm.training or norm.track_running_stats
    running = (norm.running_mean, norm.running_var) if tracked else (None, None)
    return *running, norm.weight, norm.bias, training, momentum, norm.eps
