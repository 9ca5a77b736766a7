"""Backward of a batch of gradients at once: `torch.autograd.grad(…, is_grads_batched=True)`, or vmap over it."""

import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack


def one_by_one(backward: Callable) -> Callable:
    """The `backward` of an `autograd.Function`, which may know of no batches, for each gradient of one by itself."""

    @functools.wraps(backward)
    def call(ctx, *gradients: Tensor | None):
        for gradient in gradients:
            if gradient is not None and _is_batch(gradient):
                return _each(functools.partial(call, ctx), gradients)
        return backward(ctx, *gradients)

    return call


def _is_batch(gradient: Tensor) -> bool:
    # The former is of torch.autograd, which has a vmap of its own.
    return functorch.is_legacy_batchedtensor(gradient) or functorch.is_batchedtensor(gradient)


def _each(backward: Callable, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """`backward` of each of the batch, the results as a batch."""
    if functorch.maybe_current_level() is None:
        vmap, without, level = torch, nullcontext(), torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
    else:
        vmap, without, level = functorch, temporarily_pop_interpreter_stack(), functorch.maybe_current_level()
    # What is no batch becomes one of 1, to be given again and again.
    values = [g if g is None else vmap._remove_batch_dim(g, level, 1, 0) for g in gradients]
    size = max(value.shape[0] for value in values if value is not None)
    with without:
        results = [
            backward(*(value if value is None else value[min(number, len(value) - 1)] for value in values))
            for number in range(size)
        ]
        stacked = [parts[0] if parts[0] is None else torch.stack(parts) for parts in zip(*results, strict=True)]
    return tuple(whole if whole is None else vmap._add_batch_dim(whole, 0, level) for whole in stacked)
