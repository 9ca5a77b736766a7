"""Functions with the signatures, results and errors of `torch.nn.functional`, run by this project's kernels.

A call that the kernels do not take (an empty batch, integers, a device without an engine, invalid arguments …) runs
torch's own function, which then raises torch's own errors.
"""

from __future__ import annotations

from torch import Tensor

from .ops import conv, pool


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: str | int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
) -> Tensor:
    """`torch.nn.functional.conv2d`, followed by an activation in the same kernel.

    input [N, C, H, W] or [C, H, W]; weight [K, C/groups, R, S]; bias [K]; all float16, bfloat16, float32 or float64,
    under autocast in its dtype. Returns [N, K, P, Q] (or [K, P, Q]) in the memory format that torch would choose.
    activation: None or "relu"; another raises ValueError.

    Sums are kept in float32 (float64 for float64); TF32 products are used only where
    `torch.backends.cudnn.conv.fp32_precision` allows them. The result is the same, bit by bit, each time.
    Derivatives of every order are supported.
    """
    return conv.conv2d(input, weight, bias, stride, padding, dilation, groups, activation)


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
    return pool.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
