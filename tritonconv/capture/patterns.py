"""Finds the blocks in a traced forward: a convolution or a norm, and what may run in the same kernel after it."""

import operator
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from torch import fx, nn

from ..blocks.block import ActivatedBlock, CallBlock, ConvBlock, DropoutBlock, PoolBlock
from ..blocks.modules import LEAVES, POOLS, intercepted
from .extensions import (
    after_padding,
    behind,
    with_activation,
    with_average,
    with_contiguous,
    with_frozen_norm,
    with_late_activation,
    with_norm,
    with_norm_behind,
    with_pool,
    with_residual,
    with_residual_behind,
    with_slice,
)
from .match import Match
from .nodes import CONV_CALLS, NORMS, POOL_CALLS, convolves_with_parameter, is_max_pooling, norm_of


def matches(
    module: nn.Module, graph: fx.Graph, leaves: Container[nn.Module], accept: Callable[[fx.Node], str]
) -> Iterator[Match]:
    """The blocks of a traced forward of `module`. `leaves`: the children that may be swapped; `accept(node)`: why the
    call of a function may not, or ""."""
    taken: set[fx.Node] = set()

    def free(node: fx.Node) -> bool:
        return node not in taken and not _refused(module, node, leaves, accept)

    for node in graph.nodes:
        if node in taken:
            continue
        if node.op == "call_module" and (child := module.get_submodule(node.target)) in leaves:
            kind, extensions = KINDS[type(child)]
            start = after_padding(module, Match(kind(node.target), (node,)))
            match = _read_by_convolutions(module, _extend(module, start, extensions, free), leaves)
            if match.nodes[-1].target is operator.getitem:  # a slice by itself is a view, which has strides of its own
                match = start
            if match.status == "swapped" and type(child) not in LEAVES:
                continue
        elif node.op == "call_function" and node.target in POOL_CALLS:
            refusal = accept(node)
            match = Match(PoolBlock(POOL_CALLS[node.target]), (node,), "left" if refusal else "swapped", refusal)
        elif node.op == "call_function" and node.target is F.dropout:  # in evaluation it is not in the graph
            refusal = accept(node)
            match = Match(DropoutBlock(), (node,), "left" if refusal else "swapped", refusal)
        elif node.op == "call_function" and node.target in CONV_CALLS and convolves_with_parameter(node):
            refusal = accept(node)
            match = Match(CallBlock(CONV_CALLS[node.target]), (node,), "left" if refusal else "swapped", refusal)
            match = match if refusal else _extend(module, after_padding(module, match), _CALLED, free)
        elif called := norm_of(node):
            function, arguments = called
            start = Match(ActivatedBlock(function, None), (node,), statistics=arguments)
            match = _read_by_convolutions(module, _extend(module, start, _ACTIVATION, free), leaves)
            if (match.status == "swapped" and function == "batch_norm") or accept(node):
                continue
        else:
            continue
        taken.update(match.nodes)
        yield match


def _extend(module: nn.Module, match: Match, extensions: dict[str, Callable], free: Callable) -> Match:
    for what, extend in extensions.items():
        users = match.nodes[-1].users
        longer = [m for m in (extend(module, match, user) for user in users if free(user)) if m]
        if not longer:
            continue
        if len(users) > 1:
            return replace(match, reason=f"{what} not fused: the value before it is used elsewhere too")
        if any(intercepted(module.get_submodule(member)) for member in longer[0].block.members):
            return replace(match, reason=f"{what} not fused: a hook wants the value before it")
        match = longer[0]
    users = [user for user in match.nodes[-1].users if free(user)]
    return replace(match, reason=_unfused(module, match, users[0])) if len(users) == 1 else match


def _read_by_convolutions(module: nn.Module, match: Match, leaves: Container[nn.Module]) -> Match:
    """A norm of each image by itself with those that read it, if they are convolutions alone."""
    users = match.nodes[-1].users
    if getattr(match.block, "kind", None) not in ("group_norm", "instance_norm"):
        return match
    children = [module.get_submodule(user.target) if user.op == "call_module" else None for user in users]
    if not all(type(child) is nn.Conv2d and child in leaves for child in children):
        return match
    return replace(match, block=replace(match.block, readers=tuple(user.target for user in users)))


def _unfused(module: nn.Module, match: Match, user: fx.Node) -> str:
    """Why what comes next, and often runs in the kernel of a convolution, does not here."""
    if not isinstance(match.block, ConvBlock):
        return ""
    if is_max_pooling(module, user) and match.block.kind == "conv2d" and match.addition is None:
        only = "only windows side by side are, without indices, of what never falls"
        return "" if match.block.pools else f"max-pooling not fused: {only}"
    child = module.get_submodule(user.target) if user.op == "call_module" else None
    if type(child) is NORMS[type(module.get_submodule(match.block.conv))]:
        return "batch norm not fused: it comes after the activation"
    if isinstance(child, _WITHOUT_KERNEL) or type(child).__module__ == "torch.nn.modules.activation":
        return f"{type(child).__name__} not fused: no kernel computes it"
    return ""


def _refused(module: nn.Module, node: fx.Node, leaves: Container[nn.Module], accept: Callable) -> bool:
    """Whether `node` is a max-pooling that is to be left alone."""
    if not is_max_pooling(module, node):
        return False
    return module.get_submodule(node.target) not in leaves if node.op == "call_module" else bool(accept(node))


_WITHOUT_KERNEL = nn.LayerNorm, nn.SyncBatchNorm
_ACTIVATION = {"activation": with_activation}
_NORM = {"batch norm": with_norm, "frozen batch norm": with_frozen_norm}
_EPILOGUE = {
    **_NORM,
    "addition": with_residual,
    **_ACTIVATION,
    "batch norm behind the activation": with_norm_behind,
    "addition behind that": behind(with_residual),
    "addition behind the activation": with_residual_behind,
    "activation behind that": behind(with_activation),
}
_CALLED = {what: extend for what, extend in _EPILOGUE.items() if "norm" not in what}
_POOLED = {"max-pooling": with_pool, "activation of the maxima": with_late_activation}
_NORMED = {"batch norm": with_norm, **_ACTIVATION}
KINDS = {
    nn.Conv1d: (partial(ConvBlock, "conv1d"), {"slice": with_slice, "copy": with_contiguous, **_EPILOGUE}),
    nn.Conv2d: (partial(ConvBlock, "conv2d"), _EPILOGUE | _POOLED | {"average pooling": with_average}),
    **{pool: (partial(PoolBlock, name), {}) for pool, name in POOLS.items()},
    nn.ConvTranspose1d: (partial(ActivatedBlock, "conv_transpose1d"), _NORMED),
    nn.ConvTranspose2d: (partial(ActivatedBlock, "conv_transpose2d"), _NORMED),
    nn.Linear: (partial(ActivatedBlock, "linear"), _ACTIVATION),
    nn.BatchNorm1d: (partial(ActivatedBlock, "batch_norm1d"), _ACTIVATION),
    nn.BatchNorm2d: (partial(ActivatedBlock, "batch_norm2d"), _ACTIVATION),
    nn.GroupNorm: (partial(ActivatedBlock, "group_norm"), _ACTIVATION),
    nn.InstanceNorm1d: (partial(ActivatedBlock, "instance_norm"), _ACTIVATION),
    nn.InstanceNorm2d: (partial(ActivatedBlock, "instance_norm"), _ACTIVATION),
}
