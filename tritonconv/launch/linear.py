"""A fully connected layer of one vector."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import cdiv

from ..engines import Launch
from ..kernels import linear as kernels
from .common import prepare

_ROWS, _COLUMNS = 8, 64


def launch(target: str, K: int, C: int, activation: str | None) -> Launch:
    """Tensors: x [C], weight [K, C], bias [K] or None, y [K]."""
    constexprs = {"C": C, "K": K, "ACTIVATION": activation, "BN": _ROWS, "BK": _COLUMNS}
    return Launch(kernels.linear, (cdiv(K, _ROWS), 1, 1), (), constexprs, 4, 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """activation(x · weightᵀ + bias), [..., K], of a single vector x [..., C] and a contiguous weight [K, C]."""
    _, run = prepare(x.device, launch, *weight.shape, activation)
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)
    run(x.contiguous(), weight, None if bias is None else bias.contiguous(), y)
    return y
