"""The activations that a kernel can apply to its output: torch's own function for each, and the gradient.

An activation goes by a name, "relu", or by a name and the number that it takes, "leaky_relu(0.2)". Kernels read the
same text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.activations import parse

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """`apply(x)` gives y; `backward(dy, y)` gives dx, and is None where y does not tell it."""

    apply: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor] | None = None


def _leaky_relu(slope: float) -> Activation:
    return Activation(lambda x: F.leaky_relu(x, slope), lambda dy, y: aten.leaky_relu_backward(dy, y, slope, True))


def _elu(alpha: float) -> Activation:
    return Activation(lambda x: F.elu(x, alpha), lambda dy, y: aten.elu_backward(dy, alpha, 1, 1, True, y))


# The derivative as torch has it at the kinks and for NaN.
_PLAIN = {
    "relu": Activation(torch.relu, lambda dy, y: aten.threshold_backward(dy, y, 0)),
    "relu6": Activation(F.relu6, lambda dy, y: aten.hardtanh_backward(dy, y, 0, 6)),
    "sigmoid": Activation(torch.sigmoid, lambda dy, y: aten.sigmoid_backward(dy, y)),
    "tanh": Activation(torch.tanh, lambda dy, y: aten.tanh_backward(dy, y)),
    "hardsigmoid": Activation(F.hardsigmoid, lambda dy, y: torch.where((y > 0) & (y < 1), dy / 6, 0)),
    "silu": Activation(F.silu),
    "hardswish": Activation(F.hardswish),
    "gelu": Activation(F.gelu),
    "gelu_tanh": Activation(lambda x: F.gelu(x, approximate="tanh")),
}
# With a number: what it makes of it, and the number that torch takes where none is given.
_WITH_NUMBER = {"leaky_relu": (_leaky_relu, 0.01), "elu": (_elu, 1.0)}
NAMES = (*_PLAIN, *(f"{name}(number)" for name in _WITH_NUMBER))


# Neither function has a cache of functools: torch.compile warns of those that it traces.
def canonical(text: str) -> str:
    """The activation's text with its number. Raises `ValueError` if there is no such activation."""
    if text in _PLAIN:
        return text
    name, _, number = text.partition("(")
    if name in _WITH_NUMBER:
        try:
            value = float(number.removesuffix(")")) if number else _WITH_NUMBER[name][1]
        except ValueError:
            value = -1
        if 0 <= value < float("inf"):  # else its result does not tell the sign of its input
            return f"{name}({value!r})"
    raise ValueError(f"activation must be None or one of {', '.join(NAMES)}, number >= 0; got {text!r}")


def activation(text: str) -> Activation:
    """What a canonical text stands for."""
    name, number = parse(text)
    return _PLAIN[name] if number is None else _WITH_NUMBER[name][0](number)


def gradient_at(text: str, dy: Tensor, x: Tensor) -> Tensor:
    """dx of a canonical text's activation at x, which requires a gradient; differentiable in both."""
    (dx,) = torch.autograd.grad(activation(text).apply(x), x, dy, create_graph=True)
    return dx


def is_monotone(text: str) -> bool:
    """Whether a canonical text's activation never falls: the activation of a maximum is then that of its window.

    Only such a function's result can tell its derivative.
    """
    return activation(text).backward is not None
