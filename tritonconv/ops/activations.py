"""The activations that a convolution can apply to its output: what to call where torch convolves, and the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """`apply(x)` gives y; `backward(dy, y)` gives dx. A kernel knows the activation by its name in the table."""

    apply: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _relu_backward(dy: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(dy, y, 0)  # zero where y <= 0, so that NaN passes, as torch's own


ACTIVATIONS = {"relu": Activation(torch.relu, _relu_backward)}
