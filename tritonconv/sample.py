"""Running a model on a user's sample: its input, a tuple of its inputs, or a dict of them by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .patching import swap


def tensors_of(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def inputs_of(sample: object) -> list[Tensor]:
    """The tensors of a sample. Raises `ValueError` if it is none."""
    if not (tensors := tensors_of(sample)):
        given = type(sample).__name__
        valid = "the model's input, a tuple of its inputs, or a dict of them by name"
        raise ValueError(f"the sample, of type {given}, holds no tensor: it must be {valid}")
    return tensors


def arguments(sample: object) -> tuple[tuple, Mapping]:
    """What a model is called with."""
    if isinstance(sample, Mapping):
        return (), sample
    return sample if isinstance(sample, tuple) else (sample,), {}


def copied(sample: object) -> object:
    """The sample in memory of its own: the model's first activation may work in place."""
    return tree_map_only(Tensor, lambda x: x.detach().clone().requires_grad_(x.requires_grad), sample)


def call(model: nn.Module, sample: object, context=None) -> object:
    """What `model` gives for `sample`: its input, a tuple of its inputs, or a dict of them by name.

    Raises `ValueError` if it cannot run it, or if one is on another device than the other.
    """
    name, tensors = swap.name_of(model), inputs_of(sample)
    lie = dict.fromkeys(str(value.device) for value in (*model.parameters(), *model.buffers()))
    given = dict.fromkeys(str(tensor.device) for tensor in tensors)
    if lie and (len(given) > 1 or lie != given):
        raise ValueError(f"the sample is on {' and '.join(given)}, {name} on {' and '.join(lie)}; both must be on one")
    try:
        args, kwargs = arguments(sample)
        with context or nullcontext():
            return model(*args, **kwargs)
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(f"{list(tensor.shape)} of {tensor.dtype}" for tensor in tensors)
        raise ValueError(f"{name} cannot run the sample, {shapes}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module's mode and the random numbers are as before."""
    modes = {module: module.training for module in model.modules()}
    with torch.no_grad(), torch.random.fork_rng():
        try:
            for module in modes:
                module.training = False  # not eval(), which a class may have do more
            yield
        finally:
            for module, training in modes.items():
                module.training = training
