"""Functions with the signatures, results and errors of `torch.nn.functional`, run by this project's kernels.

A call that the kernels do not take (an empty batch, integers, a device without an engine, invalid arguments …) runs
torch's own function, which then raises torch's own errors.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .ops import avg_pool, conv, conv_norm, conv_pool, conv_transpose, norm, pool1d
from .ops import conv1d as one_dimensional
from .ops import group_norm as grouped
from .ops import max_pool as maxima


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: str | int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    inner: str | None = None,
    residual: Tensor | None = None,
    activation: str | Tensor | None = None,
    max_pool: int | tuple[int, int] | None = None,
) -> Tensor:
    """`torch.nn.functional.conv2d`, followed by an addition, an activation and max-pooling in the same kernel.

    input [N, C, H, W] or [C, H, W]; weight [K, C/groups, R, S]; bias [K]; residual [N, K, P, Q]; all float16, bfloat16,
    float32 or float64, under autocast in its dtype. Returns [N, K, P, Q] (or [K, P, Q]) in the memory format that torch
    would choose.
    padding: as in torch, or ((top, bottom), (left, right)).
    activation: None, "relu", "relu6", "sigmoid", "tanh", "hardsigmoid", "silu", "hardswish", "gelu", "gelu_tanh",
    "leaky_relu" or "elu", the last two also with their number, "leaky_relu(0.2)"; another raises ValueError. A tensor
    is PReLU with these slopes, [1] or [K]; where gradients are wanted it takes a pass of its own.
    inner: an activation, but no slopes, right behind the bias; where gradients are wanted what follows it is not fused.
    max_pool: the windows of `max_pool2d`, which lie side by side: P and Q are divided by them, rounded down. If the
    activation never falls, and without a residual, the maximum is taken before it and what is not one never goes to
    memory; in training a byte is kept of each maximum. Its place is chosen before the activation: of outputs that
    differ, but whose activations round to the same, the greatest has the gradient, where in torch it is the first.

    Sums are kept in float32 (float64 for float64); TF32 products are used only where
    `torch.backends.cudnn.conv.fp32_precision` allows them. The result is the same, bit by bit, each time.
    On CPUs, 3 × 3 and 5 × 5 convolutions of float32 at stride 1, 4 × 4 and 5 × 5 ones at stride 2, and 1-D ones of
    three taps, may use Winograd's algorithm: its rounding errors are a few times as large, and where torch makes an
    output infinite or NaN, it may do so to the tile of 4 × 4 around it, or of 4 outputs a dilation apart.
    Derivatives of every order are supported.
    """
    problem = input, weight, bias, stride, padding, dilation, groups, residual, activation
    return conv.conv2d(*problem, inner) if max_pool is None else conv_pool.conv2d_max_pool(*problem, max_pool, inner)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: str | int | tuple[int] = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    *,
    extra_padding: tuple[int, int] = (0, 0),
    inner: str | None = None,
    residual: Tensor | None = None,
    activation: str | Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.conv1d`, followed by an addition and an activation in the same kernel; as `conv2d` above.

    input [N, C, W] or [C, W]; weight [K, C/groups, S]; bias [K]; residual as the result, [N, K, Q] or [K, Q].
    extra_padding: zeros before and after the input beside `padding`; negative numbers take some of that away.
    """
    options = stride, padding, dilation, groups
    return one_dimensional.conv1d(input, weight, bias, *options, residual, activation, extra_padding, inner)


def causal_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: int = 1,
    groups: int = 1,
    *,
    activation: str | Tensor | None = None,
) -> Tensor:
    """`conv1d` in which nothing depends on what comes later: padded on the left alone, without a copy.

    input [N, C, W] or [C, W]; weight [K, C/groups, S]; bias [K]. Returns [N, K, W] or [K, W]:
    y[n, k, w] = activation(bias[k] + Σ input[n, c, w − (S − 1 − s)·dilation] weight[k, c, s]).
    """
    return one_dimensional.causal_conv1d(input, weight, bias, dilation, groups, activation)


def conv2d_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int, int] = 1,
    padding: str | int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    inner: str | None = None,
    residual: Tensor | None = None,
    activation: str | Tensor | None = None,
    max_pool: int | tuple[int, int] | None = None,
) -> Tensor:
    """activation(batch_norm(conv2d(input)) + residual): `torch.nn.functional.batch_norm` behind `conv2d` above.

    running_mean, running_var, gamma, beta [K], of the input's dtype, or float32 beside a half type.
    Without `training` all is one kernel if no gradient is asked for. In training the convolution leaves the statistics
    of its output beside it, merged without loss to cancellation (Chan, Golub and LeVeque 1983), and one more pass does
    the rest, but for max-pooling; the running statistics are updated as torch does.
    """
    return conv_norm.conv2d_batch_norm(
        input, weight, bias, stride, padding, dilation, groups,
        running_mean, running_var, gamma, beta, training, momentum, eps, residual, activation, max_pool, inner,
    )  # fmt: skip


def conv1d_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int] = 1,
    padding: str | int | tuple[int] = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    *,
    extra_padding: tuple[int, int] = (0, 0),
    inner: str | None = None,
    residual: Tensor | None = None,
    activation: str | Tensor | None = None,
) -> Tensor:
    """activation(batch_norm(conv1d(input)) + residual), as `conv2d_batch_norm`."""
    return conv_norm.conv1d_batch_norm(
        input, weight, bias, stride, padding, dilation, groups,
        running_mean, running_var, gamma, beta, training, momentum, eps, residual, activation, extra_padding, inner,
    )  # fmt: skip


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, followed by an addition and an activation in the same pass.

    input, residual [N, C, H, W], [N, C, L] or [N, C] (other shapes are torch's business); running_mean, running_var,
    weight, bias [C].
    """
    return norm.batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation
    )


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | Tensor | None = None,
    keeps_format: bool = False,
) -> Tensor:
    """`torch.nn.functional.group_norm`, followed by an activation in the same pass.

    input [N, C, H, W], [N, C, L] or [N, C] (other shapes are torch's business); weight, bias [C]. The result is in the
    memory format that torch gives it, on CPUs the input's; with `keeps_format` in the input's everywhere.
    """
    return grouped.group_norm(input, num_groups, weight, bias, eps, activation, keeps_format)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | Tensor | None = None,
    keeps_format: bool = False,
) -> Tensor:
    """`torch.nn.functional.instance_norm`, followed by an activation in the same pass.

    input [N, C, H, W] or [N, C, L] (other shapes are torch's business); running_mean, running_var, weight, bias [C].
    The result is in NCHW memory, as torch's; with `keeps_format` in the input's memory format.
    """
    return grouped.instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, activation, keeps_format
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    *,
    activation: str | Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`, followed by an activation in the same kernel.

    input [N, K, P, Q] or [K, P, Q]; weight [K, C/groups, R, S]; bias [C]; the result is [N, C, H, W] or [C, H, W]: the
    names are those of the convolution that it is the gradient of. All else is as in `conv2d`.
    """
    return conv_transpose.conv_transpose2d(
        input, weight, bias, stride, padding, output_padding, groups, dilation, activation
    )


def conv_transpose2d_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    *,
    activation: str | Tensor | None = None,
) -> Tensor:
    """activation(batch_norm(conv_transpose2d(input))), as `conv2d_batch_norm`; in training one pass takes the
    statistics, and one applies them."""
    return conv_norm.conv_transpose2d_batch_norm(
        input, weight, bias, stride, padding, output_padding, groups, dilation,
        running_mean, running_var, gamma, beta, training, momentum, eps, activation,
    )  # fmt: skip


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int] = 0,
    output_padding: int | tuple[int] = 0,
    groups: int = 1,
    dilation: int | tuple[int] = 1,
    *,
    activation: str | Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.conv_transpose1d`, followed by an activation in the same kernel.

    input [N, K, Q] or [K, Q]; weight [K, C/groups, S]; bias [C]; the result is [N, C, W] or [C, W], the names being as
    in `conv_transpose2d`. All else is as in `conv1d`.
    """
    return conv_transpose.conv_transpose1d(
        input, weight, bias, stride, padding, output_padding, groups, dilation, activation
    )


def conv_transpose1d_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int] = 0,
    output_padding: int | tuple[int] = 0,
    groups: int = 1,
    dilation: int | tuple[int] = 1,
    *,
    activation: str | Tensor | None = None,
) -> Tensor:
    """activation(batch_norm(conv_transpose1d(input))), as `conv1d_batch_norm`; in training one pass takes the
    statistics, and one applies them."""
    return conv_norm.conv_transpose1d_batch_norm(
        input, weight, bias, stride, padding, output_padding, groups, dilation,
        running_mean, running_var, gamma, beta, training, momentum, eps, activation,
    )  # fmt: skip


def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.max_pool2d`: input [N, C, H, W] or [C, H, W], result [N, C, P, Q] or [C, P, Q].

    NaN wins, the first of equal maxima is the one chosen, and with `return_indices` its place h·W + w comes along as
    int64. The gradient is gathered in a fixed order: the same, bit by bit, each time.
    """
    return maxima.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def adaptive_max_pool2d(
    input: Tensor, output_size: int | tuple[int | None, int | None], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.adaptive_max_pool2d`: window p of P over H pixels is [⌊p·H/P⌋, ⌈(p + 1)·H/P⌉).

    Otherwise as `max_pool2d`.
    """
    return maxima.adaptive_max_pool2d(input, output_size, return_indices)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """`torch.nn.functional.max_unpool2d`: the values of `input` where `indices` (of `max_pool2d`) say, zeros elsewhere.

    Where indices repeat, as those of overlapping windows may, one of their values stays, and which may vary; under
    `torch.use_deterministic_algorithms` torch refuses the call. The gradient reaches every one.
    """
    return maxima.max_unpool2d(input, indices, kernel_size, stride, padding, output_size)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """`torch.nn.functional.avg_pool2d`: input [N, C, H, W] or [C, H, W], result [N, C, P, Q] or [C, P, Q].

    Sums are kept in float32 (float64 for float64), their order is fixed. Derivatives of every order are supported.
    """
    return avg_pool.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool2d(input: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d`: window p of P over H pixels is [⌊p·H/P⌋, ⌈(p + 1)·H/P⌉).

    Otherwise as `avg_pool2d`.
    """
    return avg_pool.adaptive_avg_pool2d(input, output_size)


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """`torch.nn.functional.lp_pool2d`: (Σ xᵖ)^(1/p) of each window, one kernel for p = 2; otherwise as `avg_pool2d`."""
    return avg_pool.lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode)


def max_pool1d(
    input: Tensor,
    kernel_size: int | tuple[int],
    stride: int | tuple[int] | None = None,
    padding: int | tuple[int] = 0,
    dilation: int | tuple[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.max_pool1d`: input [N, C, L] or [C, L]; otherwise as `max_pool2d`."""
    return pool1d.max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def adaptive_max_pool1d(
    input: Tensor, output_size: int | tuple[int], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.adaptive_max_pool1d`: input [N, C, L] or [C, L]; otherwise as `adaptive_max_pool2d`."""
    return pool1d.adaptive_max_pool1d(input, output_size, return_indices)


def avg_pool1d(
    input: Tensor,
    kernel_size: int | tuple[int],
    stride: int | tuple[int] | None = None,
    padding: int | tuple[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """`torch.nn.functional.avg_pool1d`: input [N, C, L] or [C, L]; otherwise as `avg_pool2d`."""
    return pool1d.avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def adaptive_avg_pool1d(input: Tensor, output_size: int | tuple[int]) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool1d`: input [N, C, L] or [C, L]; otherwise as `adaptive_avg_pool2d`."""
    return pool1d.adaptive_avg_pool1d(input, output_size)


def lp_pool1d(
    input: Tensor,
    norm_type: float,
    kernel_size: int,
    stride: int | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """`torch.nn.functional.lp_pool1d`: input [N, C, L] or [C, L]; otherwise as `lp_pool2d`."""
    return pool1d.lp_pool1d(input, norm_type, kernel_size, stride, ceil_mode)
