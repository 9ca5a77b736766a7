"""Inputs that a gradient computes again instead of keeping.

What a convolution reads behind a batch norm and an activation takes as much memory as what the norm reads, and is made
of it by one pass. So only the latter is kept for the backward pass, by both. (Chen et al. 2016, "Training Deep Nets
with Sublinear Memory Cost", trade so in general; here the price is the cheapest pass of the forward.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.weak import TensorWeakRef

from .library import Operator
from .support import is_stand_in

Parts = Sequence[Tensor | None]


@dataclass(frozen=True)
class Recipe:
    """How `made.call(*parts, *settings)` makes a tensor again, differentiable in its parts.

    It lies in the `ctx` that made the tensor. It holds on to small parts only, not to images.
    """

    made: type[Operator]
    version: int  # of the tensor as it was made
    parts: tuple[Tensor | TensorWeakRef | None, ...]
    settings: tuple

    @classmethod
    def of(cls, made: type[Operator], result: Tensor, parts: Parts, settings: Sequence) -> Recipe:
        held = (TensorWeakRef(part) if part is not None and part.dim() == 4 else part for part in parts)
        return cls(made, result._version, tuple(held), tuple(settings))


def kept(x: Tensor | None) -> tuple[Recipe | None, Parts]:
    """What to save for x: the parts of its recipe, if these are there and x is as it was made, or else x itself."""
    node = None if x is None or is_stand_in(x) else x.grad_fn
    if not issubclass(getattr(node, "_forward_cls", object), Operator):
        return None, (x,)
    recipe = getattr(node, "recipe", None)
    if recipe is not None and recipe.version == x._version:
        parts = [part() if isinstance(part, TensorWeakRef) else part for part in recipe.parts]
        if all((part is None) == (held is None) for part, held in zip(parts, recipe.parts, strict=True)):
            return recipe, parts
    node.is_kept = True
    return None, (x,)


def is_kept(x: Tensor) -> bool:
    """Whether `kept` said to save x itself."""
    return getattr(x.grad_fn, "is_kept", False)


def restored(recipe: Recipe | None, parts: Parts) -> Tensor | None:
    """x, of what `kept` said."""
    return parts[0] if recipe is None else recipe.made.call(*parts, *recipe.settings)
