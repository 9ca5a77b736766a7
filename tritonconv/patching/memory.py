"""The memory format of a model's weights and of its inputs: to another, and back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils._pytree import tree_map_only

from ..ops.support import nchw


def arranged(values: object, memory_format: torch.memory_format) -> object:
    """`values`, a tensor or what contains some, with those of four dimensions in `memory_format`."""
    return tree_map_only(Tensor, lambda x: x.to(memory_format=memory_format) if x.dim() == 4 else x, values)


def arrange(model: nn.Module, memory_format: torch.memory_format) -> frozenset[str]:
    """Gives the parameters and buffers of `model` that are in NCHW memory this format; returns the names of those that
    had another."""
    changed = set()
    for name, tensor in _images(model):
        other = tensor.detach().to(memory_format=memory_format)
        if tensor.is_contiguous() and other.stride() != tensor.stride():
            tensor.data = other
            changed.add(name)
    return frozenset(changed)


def put_back(model: nn.Module, names: frozenset[str]) -> None:
    """Gives these parameters and buffers of `model` NCHW memory again."""
    for name, tensor in _images(model) if names else ():
        if name in names:
            tensor.data = nchw(tensor.detach())


def _images(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of four dimensions, under every name that they have. Not those that FSDP has cut into shards."""
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            if type(tensor) in (Tensor, Parameter) and tensor.dim() == 4:
                yield name, tensor
