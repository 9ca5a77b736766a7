"""Fully connected layers, on a CPU, of one vector or a few: there reading the weight, or writing its gradient, is all
the work, and torch's product does it at a half to an eighth of the memory's rate. Torch multiplies other matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import engines
from ..launch import linear as launch
from ..launch.linear import linear as run
from . import conv
from .activations import Text
from .epilogue import finish
from .support import is_empty, is_listened_to, needs_gradient, operand, unsupported_call, unsupported_operands


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Text = None) -> Tensor:
    """activation(F.linear(input, weight, bias)). `activation` is canonical."""
    if not _fits(input, weight, bias):
        return finish(F.linear(input, weight, bias), None, activation)
    ours, left = (None, activation) if isinstance(activation, Tensor) else (activation, None)
    (K, C), vectors = weight.shape, input.numel() // input.shape[-1]
    if vectors == 1 and not needs_gradient(input, weight, bias):
        return finish(run(input, weight, bias, ours), None, left)
    geometry = launch.geometry_of(vectors, C, K)
    if not launch.takes(input, geometry):
        return finish(F.linear(input, weight, bias), None, activation)
    y = conv.run(input.reshape(vectors, C, 1, 1), weight.view(K, C, 1, 1), bias, geometry, None, ours)
    return finish(y.view(*input.shape[:-1], K), None, left)


def _fits(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a kernel could take these operands."""
    given = (input, weight) if bias is None else (input, weight, bias)
    if torch.compiler.is_compiling() or is_listened_to() or unsupported_call(*given) is not None:
        return False
    if input.device.type != "cpu" or torch.is_autocast_enabled("cpu") or input.dim() == 0 or weight.dim() != 2:
        return False
    if engines.engine_for(input.device).target(input.device) not in ("cpu", "interpreter"):  # what is listed for a GPU
        return False
    K, C = weight.shape
    fits = input.shape[-1] == C and (bias is None or bias.shape == (K,)) and not is_empty(K, C, input.numel())
    return fits and weight.is_contiguous() and unsupported_operands(*map(operand, given)) is None
