"""What follows a convolution or a norm, a residual and an activation: its kernel's part, and what runs behind it."""

from __future__ import annotations

from torch import Tensor

from ..launch.norm import Norm
from . import activations
from .activations import Text
from .prelu import Prelu
from .support import autocast, needs_gradient, operand, unsupported_call

Epilogue = tuple[Tensor | None, Text]


def prepared(activation: Text, like: Tensor) -> Text:
    """The activation as kernels take it behind what `like` went into. Raises `ValueError` if there is none such."""
    activation = activations.canonical(activation)
    return autocast(like, activation)[1] if isinstance(activation, Tensor) else activation


def suits(activation: Text, channels: int, like: Tensor, batched: bool) -> bool:
    """Whether a kernel can apply the activation to so many channels of the dtype of `like`: of slopes there is one or
    one for each channel. Without a batch torch takes another axis for the channels."""
    if not isinstance(activation, Tensor):
        return True
    shaped = activation.dim() <= 1 and activation.numel() in ((1, channels) if batched else (1,))
    return shaped and unsupported_call(activation) is None and operand(activation)[1:] == operand(like)[1:]


def divided(residual: Tensor | None, activation: Text, adds: bool, activates: bool) -> tuple[Epilogue, Epilogue]:
    """The epilogue that a kernel does, and the one left to `finish`; said is what the kernel can do."""
    if not adds:
        return (None, None), (residual, activation)
    return ((residual, activation), (None, None)) if activates else ((residual, None), (None, activation))


def finish(y: Tensor, residual: Tensor | None, activation: Text) -> Tensor:
    """An epilogue in torch."""
    y = y if residual is None else y + residual
    return y if activation is None else activations.activation(activation).apply(y)


def overwrite(y: Tensor, residual: Tensor | None, activation: Text) -> Tensor:
    """`finish` of y that nobody else has, and whose own derivative does not need it: as models write it for torch, in
    its memory, where that comes to the same."""
    if residual is not None:
        alike = residual.shape == y.shape and residual.dtype == y.dtype
        y = y.add_(residual) if alike else y + residual
    if activation is None:
        return y
    known = activations.activation(activation)
    return (known.overwrite or known.apply)(y)


def is_separate(activation: Text, *tensors: Tensor | None) -> bool:
    """Whether the activation cannot be in the kernel of what these tensors go into, for want of its derivative."""
    if activation is None or activations.activation(activation).backward is not None:
        return False
    return needs_gradient(*tensors, activation if isinstance(activation, Tensor) else None)


def is_apart(inner: str | None, activation: Text, *tensors: Tensor | None) -> bool:
    """Whether an activation right behind the sums of these keeps what follows it from their kernel: it has no
    gradient."""
    return inner is not None and needs_gradient(*tensors, activation if isinstance(activation, Tensor) else None)


def with_slopes(norm: Norm, activation: Text) -> tuple[Norm, str | None]:
    """Norm and activation as launches take them."""
    text, slope = activations.for_kernels(activation)
    return norm._replace(slope=slope), text


def activated(y: Tensor, activation: str | Tensor) -> Tensor:
    """activation(y), of a kernel's result y, in a pass of its own."""
    return Prelu.call(y, activation) if isinstance(activation, Tensor) else finish(y, None, activation)
