"""Calls by kernels, and by torch's own functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from autotune import Problem

from .. import choice, launch
from .common import clock, difference, integers, tuples


@dataclass(frozen=True)
class Call:
    """The call that a key describes: its operands, small integers, and which of them have gradients."""

    key: Mapping
    device: torch.device
    args: list
    options: dict[str, object]

    @classmethod
    def of(cls, key: Mapping, device: torch.device) -> Call:
        options = {name: _operand(value, device) for name, value in key["options"].items()}
        args = [_operand(value, device) for value in key["arguments"]]
        if key["op"] == "max_unpool2d":
            args[1] = _pooled_indices(*args)
        return cls(key, device, args, options)

    @property
    def dtype(self) -> torch.dtype:
        """That of the results."""
        autocast = self.key["autocast"]
        return self.args[0].dtype if autocast is None else getattr(torch, autocast)

    def by(self, function: Callable, args: Sequence, options: Mapping) -> object:
        with torch.autocast(self.device.type, self.dtype, enabled=self.key["autocast"] is not None):
            return function(*args, **options)

    def exactly(self) -> list[Tensor]:
        """What torch gives in float64."""
        return tree_leaves(self.by(choice.torchs(self.key["op"]), *tree_map(_exactly, (self.args, self.options))))

    def run(self, candidate: Mapping) -> Callable[[], object]:
        """What makes the call as the candidate does, and its gradients, if it has some."""
        function = (choice.torchs if candidate == choice.TORCH else choice.kernels)(self.key["op"])
        operands = tree_leaves((self.args, self.options))
        leaves = [leaf for leaf in operands if isinstance(leaf, Tensor) and leaf.requires_grad]

        def forward():
            with torch.no_grad():
                return self.by(function, self.args, self.options)

        if not self.key["backward"]:
            return forward
        dy = torch.ones_like(tree_leaves(forward())[0])

        def forward_and_backward():
            with torch.enable_grad():
                outputs = self.by(function, self.args, self.options)
                torch.autograd.grad(tree_leaves(outputs)[0], leaves, dy)
            return outputs

        return forward_and_backward


def problem(key: Mapping, device: torch.device) -> Problem:
    launch.common.forget()  # what runs now is to have the configs found since
    call = Call.of(key, device)
    exact = call.exactly()
    return Problem(
        key=key,
        candidates=[choice.KERNELS, choice.TORCH],
        costs=[None, None],
        run=call.run,
        check=lambda result: difference(result, exact, call.dtype, roundings=4),
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
