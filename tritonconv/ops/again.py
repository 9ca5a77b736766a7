"""Inputs that a gradient computes again instead of keeping.

What a convolution reads behind a batch norm and an activation takes as much memory as what the norm reads, and is made
of it by one pass. So only the latter is kept for the backward pass, by both. (Chen et al. 2016, "Training Deep Nets
with Sublinear Memory Cost", trade so in general; here the price is the cheapest pass of the forward.)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils.weak import TensorWeakRef

from .support import is_stand_in


@dataclass(frozen=True)
class Recipe:
    """How `made(*parts, *settings)` makes a tensor again, differentiable in its parts, of which the first is large.

    It lies in the `ctx` that made the tensor, and holds on to nothing but small parts: `ctx` has saved the first.
    """

    made: type  # an Operator
    version: int  # of what was made
    large: TensorWeakRef
    small: tuple[Tensor | None, ...]
    settings: tuple

    def make(self, parts: tuple[Tensor | None, ...]) -> Tensor:
        return self.made.call(*parts, *self.settings)


Kept = tuple[Recipe | None, tuple[Tensor | None, ...]]


def kept(x: Tensor | None) -> Kept:
    """What to save for x: itself, or the parts of its recipe, if all of these are there and x is as it was made."""
    recipe = None if x is None or is_stand_in(x) else getattr(x.grad_fn, "recipe", None)
    if isinstance(recipe, Recipe) and x._version == recipe.version:
        large = recipe.large()
        if large is not None:
            return recipe, (large, *recipe.small)
    return None, (x,)


def restored(recipe: Recipe | None, parts: tuple[Tensor | None, ...]) -> Tensor | None:
    """x, of what `kept` said."""
    return parts[0] if recipe is None else recipe.make(parts)
