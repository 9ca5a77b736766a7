"""The activations that a kernel can apply to its output: torch's own function for each, and the gradient.

An activation goes by a name, "relu", or by a name and the number that it takes, "leaky_relu(0.2)". Kernels read the
same text. A PReLU goes by its slopes, a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.activations import parse

aten = torch.ops.aten
PRELU = "prelu"  # a block's text of it; its slopes come with each call
Text = str | Tensor | None  # of what has an activation or none


@dataclass(frozen=True)
class Activation:
    """`apply(x)` gives y; `backward(dy, y)` gives dx, and is None where y does not tell it. `overwrite(x)` gives y in
    the memory of x, and is None where torch's derivative would then be another or need a copy of x."""

    apply: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor] | None = None
    overwrite: Callable[[Tensor], Tensor] | None = None


def _leaky_relu(slope: float) -> Activation:
    return Activation(
        lambda x: F.leaky_relu(x, slope),
        lambda dy, y: aten.leaky_relu_backward(dy, y, slope, True),
        lambda x: F.leaky_relu_(x, slope),
    )


def _elu(alpha: float) -> Activation:
    return Activation(lambda x: F.elu(x, alpha), lambda dy, y: aten.elu_backward(dy, alpha, 1, 1, True, y))


# The derivative as torch has it at the kinks and for NaN.
_PLAIN = {
    "relu": Activation(torch.relu, lambda dy, y: aten.threshold_backward(dy, y, 0), torch.relu_),
    "relu6": Activation(F.relu6, lambda dy, y: aten.hardtanh_backward(dy, y, 0, 6), lambda x: F.relu6(x, inplace=True)),
    "sigmoid": Activation(torch.sigmoid, lambda dy, y: aten.sigmoid_backward(dy, y), torch.sigmoid_),
    "tanh": Activation(torch.tanh, lambda dy, y: aten.tanh_backward(dy, y), torch.tanh_),
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
def canonical(text: Text) -> Text:
    """The activation's text with its number. Raises `ValueError` if there is no such activation."""
    if text is None or isinstance(text, Tensor) or text in _PLAIN:
        return text
    name, _, number = text.partition("(")
    if name in _WITH_NUMBER:
        try:
            value = float(number.removesuffix(")")) if number else _WITH_NUMBER[name][1]
        except ValueError:
            value = -1
        if 0 <= value < float("inf"):  # else its result does not tell the sign of its input
            return f"{name}({value!r})"
    names = ", ".join(NAMES)
    raise ValueError(f"activation must be None, slopes or one of {names}, number >= 0; got {text!r}")


def activation(text: str | Tensor) -> Activation:
    """What a canonical text, or slopes, stand for."""
    if isinstance(text, Tensor):
        return Activation(lambda x: F.prelu(x, text))
    if text in _PLAIN:
        return _PLAIN[text]
    name, number = parse(text)
    return _WITH_NUMBER[name][0](number)


def gradient_at(text: str, dy: Tensor, x: Tensor) -> Tensor:
    """dx of a canonical text's activation at x, which requires a gradient; differentiable in both."""
    (dx,) = torch.autograd.grad(activation(text).apply(x), x, dy, create_graph=True)
    return dx


def is_monotone(text: str | Tensor) -> bool:
    """Whether an activation never falls: the activation of a maximum is then that of its window.

    Only such a function's result can tell its derivative. PReLU's slopes may be negative.
    """
    return isinstance(text, str) and text != PRELU and activation(text).backward is not None


def in_order(inner: str | None, last: str | None) -> str | None:
    """As kernels take an activation right behind a sum and one after norm and residual."""
    return last if inner is None else f"{inner}>{last or ''}"


def for_kernels(text: Text) -> tuple[str | None, Tensor | None]:
    """An activation as kernels take it: its text, and the slopes of a PReLU."""
    if isinstance(text, Tensor):
        return (f"{PRELU}(1)" if text.numel() == 1 else PRELU), text
    return text, None
