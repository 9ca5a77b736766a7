"""The interior of a model, where nobody sees in which memory format activations lie.

Kernels convolve in channels_last memory. A model in NCHW memory is to give what torch gives, in NCHW memory; but what
one block hands to the next may stay as the kernels want it. A module of which that is known (`patching.interior`) runs
`inside`, and hands out its result as `seen` from outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .support import calls, is_channels_last


def is_inside() -> bool:
    """Whether convolutions give channels_last memory whatever they are given."""
    return calls.inside


@contextmanager
def inside(within: bool = True) -> Iterator[None]:
    """Runs in the interior, or, for a while, outside of it again."""
    before, calls.inside = calls.inside, within
    try:
        yield
    finally:
        calls.inside = before


def viewed(x: Tensor, *shape) -> Tensor:
    """`x.view(*shape)`, which in the interior may have to be a copy."""
    if torch.compiler.is_compiling() or not calls.inside:  # in this order: a compiler knows no threads
        return x.view(*shape)
    return x.reshape(*shape)


def seen(values: object) -> object:
    """`values`, a tensor or what contains some, with the images of them in NCHW memory."""
    made: dict[int, Tensor] = {}  # what is given twice is given back twice

    def nchw(x: Tensor) -> Tensor:
        if is_seen(x):
            return x
        if id(x) not in made:
            made[id(x)] = x.contiguous()
        return made[id(x)]

    return tree_map_only(Tensor, nchw, values)


def is_seen(values: object) -> bool:
    """Whether they are that already."""
    tensors = (value for value in tree_leaves(values) if isinstance(value, Tensor))
    return not any(x.dim() == 4 and is_channels_last(x) for x in tensors)
