"""What the nodes of a recorded graph stand for: tensors, as views of the memory they lie in, and launches.

Of a node `meta["views"]` are the tensors in its value, `meta["launch"]` is what it launched, and `meta["lasting"]` is
set where what it is given may be looked at after it has run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef

from ..cpu.runtime import Kernel
from ..engines import Launch


class Storage:
    """Memory that tensors share. `base`: the first node whose value is a tensor in it, `start` bytes from its
    beginning; `made`: whether that node is an allocation by a block."""

    def __init__(self, tensor: Tensor, made: bool):
        self.made, self.base, self.start = made, None, 0
        self.size = tensor.untyped_storage().nbytes()
        self.reference = StorageWeakRef(tensor.untyped_storage())  # no other has its address while this lives


@dataclass(frozen=True)
class View:
    """A tensor: `offset` bytes into its storage."""

    storage: Storage
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Room:
    """Memory whose content nobody reads after the launch."""

    size: int


@dataclass(frozen=True, eq=False)
class Launched:
    """`dtypes` are of all tensors that `launch` has, None where one is not given. `operands`: those that are given, a
    tensor itself where it is the same at every call."""

    kernel: Kernel
    launch: Launch
    dtypes: tuple[torch.dtype | None, ...]
    operands: tuple[View | Tensor | Room, ...]

    @property
    def named(self) -> dict[str, View | Tensor | Room]:
        """The operands by the names of the kernel's parameters."""
        names = zip(self.launch.kernel.arg_names, self.dtypes, strict=False)
        given = [name for name, dtype in names if dtype is not None]
        return dict(zip(given, self.operands, strict=True))


def launched(*tensors: Tensor) -> None:
    """What the nodes of launches call, in the recorded graph. `meta["launch"]` says more."""


def views_of(node: fx.Node) -> list[View]:
    """The tensors in its value, as the tape knows them."""
    return node.meta.get("views", [])


def constant_of(number: int) -> Tensor:
    """What the nodes of constants call, in the recorded graph."""
