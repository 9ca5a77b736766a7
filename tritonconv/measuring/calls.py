"""Calls by kernels, and by torch's own functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from autotune import Problem

from .. import choice, launch
from .common import clock, difference, integers, tuples


def problem(key: Mapping, device: torch.device) -> Problem:
    launch.common.forget()  # what runs now is to have the configs found since
    op, given = key["op"], {name: _operand(value, device) for name, value in key["options"].items()}
    args = [_operand(value, device) for value in key["arguments"]]
    if op == "max_unpool2d":
        args[1] = _pooled_indices(*args)
    leaves = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    autocast = None if key["autocast"] is None else getattr(torch, key["autocast"])

    def call(function: Callable, args: Sequence, options: Mapping) -> object:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            return function(*args, **options)

    exact = tree_leaves(call(choice.torchs(op), *tree_map(_exactly, (args, given))))
    dtype = autocast or args[0].dtype
    dy = torch.ones_like(exact[0], dtype=dtype) if key["backward"] else None

    def run(candidate: Mapping) -> Callable[[], object]:
        function = (choice.torchs if candidate == choice.TORCH else choice.kernels)(op)

        def forward():
            with torch.no_grad():
                return call(function, args, given)

        def forward_and_backward():
            with torch.enable_grad():
                outputs = call(function, args, given)
                torch.autograd.grad(tree_leaves(outputs)[0], leaves, dy)
            return outputs

        return forward_and_backward if key["backward"] else forward

    return Problem(
        key=key,
        candidates=[choice.KERNELS, choice.TORCH],
        costs=[None, None],
        run=run,
        check=lambda result: difference(result, exact, dtype, roundings=4),
        prepare=lambda candidates: None,
        clock=clock(device),
    )


def _operand(value: object, device: torch.device) -> object:
    if not isinstance(value, Mapping):
        return tuples(value)
    x = integers(device, *value["shape"])
    x = x.abs() + 1 if x.dim() == 1 else x  # a bias or a statistic: variances are positive
    x = x.to(getattr(torch, value["dtype"]))
    x = x.to(memory_format=torch.channels_last) if value["channels_last"] else x
    return x.requires_grad_(value["requires_grad"])


def _pooled_indices(input: Tensor, indices: Tensor, kernel_size, stride, padding, output_size) -> Tensor:
    """Indices as max-pooling gives them, in the place of `indices`."""
    size = F.max_unpool2d(input.detach(), torch.zeros_like(indices), kernel_size, stride, padding, output_size).shape
    pooled = F.adaptive_max_pool2d(integers(input.device, *size), indices.shape[-2:], return_indices=True)[1]
    return torch.empty_like(indices).copy_(pooled)


def _exactly(value: object) -> object:
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value
