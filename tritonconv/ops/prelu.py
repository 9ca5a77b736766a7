"""PReLU by itself, with autograd: what runs behind a kernel where gradients are wanted.

Slopes may be negative, so that the result does not tell the sign of the input: it is the input that is kept.
"""

from __future__ import annotations

import torch

from ..launch import norm as launch
from ..launch.common import accumulator_of
from ..launch.norm import Norm
from .activations import for_kernels
from .library import Operator


class Prelu(Operator):
    """x where x > 0, else slope · x; x [N, C, H, W], slope [C] or [1]."""

    schema = "prelu(Tensor x, Tensor slope) -> Tensor"

    @staticmethod
    def run(x, slope):
        return launch.apply(x, Norm(slope=slope), None, for_kernels(slope)[0])

    @staticmethod
    def fake(x, slope):
        return launch.empty_result(x)

    @staticmethod
    def save(ctx, inputs, y):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy):
        x, slope = ctx.saved_tensors
        needs_slope = ctx.needs_input_grad[1]
        if torch.is_grad_enabled():  # for derivatives of a higher order
            each = slope.view(-1, 1, 1)
            dx, sums = torch.where(x > 0, dy, dy * each), torch.where(x > 0, 0, dy * x).sum((0, 2, 3))
        else:
            dx, *rest = PreluBackward.call(dy, x, slope, needs_slope)
            sums = rest.pop() if needs_slope else None
        if not needs_slope:
            return dx, None
        return dx, (sums if slope.numel() > 1 else sums.sum()).view(slope.shape).to(slope.dtype)


class PreluBackward(Operator):
    """The gradient of x in `Prelu` and, if needed, [C]: that of a slope for each channel."""

    schema = "prelu_backward(Tensor dy, Tensor x, Tensor slope, bool needs_slope) -> Tensor[]"

    @staticmethod
    def run(dy, x, slope, needs_slope):
        return launch.prelu_backward(dy, x, slope, for_kernels(slope)[0], needs_slope)

    @staticmethod
    def fake(dy, x, slope, needs_slope):
        return [launch.empty_result(x)] + [x.new_empty(x.shape[1], dtype=accumulator_of(x))] * needs_slope
