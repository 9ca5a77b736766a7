"""Fully connected layers. Torch multiplies matrices; a kernel takes one vector at a time, in inference on a CPU, where
reading the weight is all the work, and where torch's product reads it at half the memory's rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import engines
from ..launch.linear import linear as run
from .activations import Text
from .epilogue import finish
from .support import is_empty, needs_gradient, operand, unsupported_call, unsupported_operands


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Text = None) -> Tensor:
    """activation(F.linear(input, weight, bias)). `activation` is canonical."""
    if not _is_taken(input, weight, bias):
        return finish(F.linear(input, weight, bias), None, activation)
    if isinstance(activation, Tensor):
        return finish(run(input, weight, bias, None), None, activation)
    return run(input, weight, bias, activation)


def _is_taken(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    given = (input, weight) if bias is None else (input, weight, bias)
    if torch.compiler.is_compiling() or needs_gradient(*given) or unsupported_call(*given) is not None:
        return False
    if input.device.type != "cpu" or torch.is_autocast_enabled("cpu") or input.dim() == 0 or weight.dim() != 2:
        return False
    if engines.engine_for(input.device).target(input.device) not in ("cpu", "interpreter"):  # what is listed for a GPU
        return False
    K, C = weight.shape
    fits = input.shape[-1] == input.numel() == C and (bias is None or bias.shape == (K,)) and not is_empty(K, C)
    return fits and weight.is_contiguous() and unsupported_operands(*map(operand, given)) is None
