"""Inputs that a gradient computes again instead of keeping.

What a convolution reads behind a batch norm and an activation takes as much memory as what the norm reads, and is made
of it by one pass. So only the latter is kept for the backward pass, by both. A residual that the norm adds may itself
be made again: then the sums of some blocks follow from the first one's. (Chen et al. 2016, "Training Deep Nets with
Sublinear Memory Cost", trade so in general; here the price is the cheapest pass of the forward.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from .library import Operator
from .support import is_stand_in

Parts = Sequence[Tensor | None]
LONGEST = 5  # recipes one before the other; what saves the last one's tensor saves the parts of all


@dataclass(eq=False)
class Recipe:
    """How `operator.call(*parts, *settings)` makes a tensor again, differentiable in its parts.

    It lies in the `ctx` that made the tensor. It holds on to small parts only, not to images. The last part, a
    residual, is what the recipe `before` makes, if there is one. `result`: of a sum, what was made, for whoever needs
    it next; the last to do so is the operator's own derivative, which takes it away.
    """

    operator: type[Operator]
    version: int  # of the tensor as it was made
    parts: tuple[Tensor | TensorWeakRef | None, ...]
    before: Recipe | None
    settings: tuple
    result: Tensor | None = None

    @classmethod
    def of(cls, operator: type[Operator], result: Tensor, parts: Parts, before: Recipe | None, settings) -> Recipe:
        held = (TensorWeakRef(part) if part is not None and part.dim() == 4 else part for part in parts)
        return cls(operator, result._version, tuple(held), before, tuple(settings))

    def length(self) -> int:
        return 1 if self.before is None else 1 + self.before.length()

    def leaves(self) -> list[Tensor | None] | None:
        """What is to be saved: the parts, and then those of the recipe before. None if one of them is gone."""
        parts = [part() if isinstance(part, TensorWeakRef) else part for part in self.parts]
        if any(part is None and held is not None for part, held in zip(parts, self.parts, strict=True)):
            return None
        if self.before is None:
            return parts
        earlier = self.before.leaves()
        return None if earlier is None else parts + earlier

    def made(self, leaves: Parts) -> Tensor:
        if self.result is not None and not torch.is_grad_enabled():
            return self.result
        parts, earlier = list(leaves[: len(self.parts)]), leaves[len(self.parts) :]
        if self.before is not None:
            parts.append(self.before.made(earlier))
        result = self.operator.call(*parts, *self.settings)
        if parts[-1] is not None and not torch.is_grad_enabled():
            self.result = result
        return result

    def taken(self) -> Tensor | None:
        result, self.result = self.result, None
        return result


def recipe_of(x: Tensor | None) -> Recipe | None:
    """How to make x again, if it is as it was made and all that it was made of is there."""
    node = None if x is None or is_stand_in(x) else x.grad_fn
    if not issubclass(getattr(node, "_forward_cls", object), Operator):
        return None
    recipe = getattr(node, "recipe", None)
    return recipe if recipe is not None and recipe.version == x._version and recipe.leaves() is not None else None


def recipe_before(residual: Tensor | None) -> Recipe | None:
    """The same of a residual, if the recipe that follows is not too long."""
    recipe = recipe_of(residual)
    return recipe if recipe is not None and recipe.length() < LONGEST else None


def kept(x: Tensor | None) -> tuple[Recipe | None, Parts]:
    """What to save for x: the leaves of its recipe, or else x itself."""
    recipe = recipe_of(x)
    if recipe is not None:
        return recipe, recipe.leaves()
    if x is not None and issubclass(getattr(x.grad_fn, "_forward_cls", object), Operator):
        x.grad_fn.is_kept = True
    return None, (x,)


def is_kept(x: Tensor) -> bool:
    """Whether `kept` said to save x itself, or x is an input of the whole."""
    return not is_stand_in(x) and (x.grad_fn is None or getattr(x.grad_fn, "is_kept", False))


def restored(recipe: Recipe | None, parts: Parts) -> Tensor | None:
    """x, of what `kept` said."""
    return parts[0] if recipe is None else recipe.made(parts)
