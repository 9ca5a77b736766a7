"""What may run in the kernel of a convolution or a norm. Each function gives a match that is longer, or None."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import takewhile

import torch.nn.functional as F
from torch import fx, nn

from ..blocks.block import AveragedBlock, CallBlock, ConvBlock
from ..blocks.modules import MAX_POOL, POOLS, commute, side_by_side, window_of
from ..ops.activations import PRELU, is_monotone
from ..ops.support import pair
from .match import Match
from .nodes import (
    ADD_CALLS,
    IN_PLACE_ADDS,
    NORMS,
    activation_of,
    batch_norm_of,
    changes_nothing,
    is_max_pooling,
    padding_argument,
    padding_of,
    scale_and_shift,
    slopes_of,
)


def after_padding(module: nn.Module, match: Match) -> Match:
    """`match` of a convolution with the padding by zeros before it."""
    (conv,) = match.nodes
    pad, called = conv.args[0] if conv.args else None, isinstance(match.block, CallBlock)
    function = match.block.pattern
    if function not in ("conv1d", "conv2d") or not isinstance(pad, fx.Node) or len(pad.users) > 1:
        return match
    own = padding_argument(conv) if called else module.get_submodule(conv.target).padding
    if function == "conv2d" and pair(own) is None:  # "same"
        return match
    padding = padding_of(pad, function)
    if padding is None:
        return match
    # A call stays where its arguments are: nothing on the way there may overwrite what is padded.
    between = takewhile(lambda node: node is not conv, _after(pad))
    if called and not all(map(changes_nothing, between)):
        return match
    status = match.status if called else "fused"
    return replace(match, block=replace(match.block, padding=padding), nodes=(pad, conv), status=status)


def with_slice(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """The last positions cut off, as what follows a causal convolution that pads on both sides."""
    conv = module.get_submodule(match.block.conv)
    if conv.stride != (1,) or match.block.padding:
        return None
    if user.target is not operator.getitem or not isinstance(user.args[1], tuple):
        return None
    *others, last = user.args[1]
    whole = others in ([slice(None)] * 2, [...])
    if not whole or not isinstance(last, slice) or (last.start, last.step) != (None, None):
        return None
    if type(last.stop) is not int or not -conv.kernel_size[0] * conv.dilation[0] <= last.stop < 0:
        return None
    return match.longer(user, padding=(0, last.stop))


def with_contiguous(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """The copy of such a slice, which the block does not need."""
    sliced = isinstance(match.block.padding, tuple) and min(match.block.padding, default=0) < 0
    return match.longer(user) if sliced and user.target == "contiguous" and not user.kwargs else None


def with_norm(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    if not user.args or user.args[0] is not match.nodes[-1]:
        return None
    if statistics := batch_norm_of(user):
        return replace(match.longer(user, norm_call=True), statistics=statistics)
    kind = type(module.get_submodule(match.name))
    if user.op != "call_module" or type(module.get_submodule(user.target)) is not NORMS[kind]:
        return None
    return match.longer(user, norm=user.target)


def with_frozen_norm(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """A multiplication and an addition by which batch norm's statistics are frozen."""
    found = scale_and_shift(user, match.nodes[-1])
    if found is None or match.statistics or match.block.norm is not None:
        return None
    *statistics, addition = found
    return replace(match.longer(user, norm_call=True).longer(addition), statistics=tuple(statistics))


def with_residual(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    if user.target not in ADD_CALLS or len(user.args) != 2 or user.kwargs:
        return None
    ours = match.nodes[-1]
    residual = user.args[1] if user.args[0] is ours else user.args[0]
    if not isinstance(residual, fx.Node) or residual is ours:
        return None
    if user.target in IN_PLACE_ADDS and user.args[0] is not ours:  # others see what it overwrites
        return None
    if not _can_wait(module, match, user):
        return None
    return replace(match.longer(user, residual=True), addition=user)


def with_activation(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    text = activation_of(module, user)
    if text is None:
        return None
    if user.op == "call_module":
        return match.longer(user, activation=text, activation_module=user.target)
    return match.longer(user, activation=text, slopes=slopes_of(user) if text == PRELU else None)


def with_norm_behind(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """Batch norm after the activation, which then is the inner one."""
    inner = _with_inner(match)
    return inner and with_norm(module, inner, user)


def with_residual_behind(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """The same of an addition."""
    inner = _with_inner(match)
    return inner and with_residual(module, inner, user)


def _with_inner(match: Match) -> Match | None:
    block = match.block
    normed = isinstance(block, ConvBlock) and (block.norm is not None or block.norm_call)
    if block.activation in (None, PRELU) or normed or block.residual:
        return None
    inner = {"inner": block.activation, "inner_module": block.activation_module}
    return replace(match, block=replace(block, **inner, activation=None, activation_module=None))


def behind(extend: Callable) -> Callable:
    """`extend`, of what has an inner activation."""

    def extended(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
        return None if match.block.inner is None else extend(module, match, user)

    return extended


def with_pool(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """Max-pooling, if the activation before it never falls, so that both orders give the same."""
    if match.addition is not None or match.block.inner is not None:
        return None
    if not (match.block.activation is None or is_monotone(match.block.activation)):
        return None
    if not is_max_pooling(module, user) or user.target is F.max_pool2d_with_indices:
        return None
    if user.op == "call_module":
        suits = window_of(module.get_submodule(user.target)) is not None
        return match.longer(user, pool_module=user.target) if suits else None
    given = dict(zip(("input", *MAX_POOL), user.args, strict=False)) | user.kwargs
    del given["input"]
    window = side_by_side(**given)
    return None if window is None else match.longer(user, window=window, ceil_mode=given.get("ceil_mode", False))


def with_late_activation(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    text = activation_of(module, user)
    if text is None or not (match.block.pools and match.block.activation is None and is_monotone(text)):
        return None
    return with_activation(module, replace(match, block=replace(match.block, pool_first=True)), user)


def with_average(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """Average pooling, if nothing else is in the block."""
    plain, pool = ConvBlock("conv2d", match.name), user.op == "call_module" and module.get_submodule(user.target)
    if match.block != plain or type(pool) not in (nn.AvgPool2d, nn.AdaptiveAvgPool2d):
        return None
    if not commute(module.get_submodule(match.name), pool):
        return None
    block = AveragedBlock(match.name, POOLS[type(pool)], user.target)
    return replace(match, block=block, nodes=(*match.nodes, user), status="fused")


def _can_wait(module: nn.Module, match: Match, user: fx.Node) -> bool:
    """Whether the convolution may run as late as `user`: nothing on the way there can overwrite its input."""
    between = takewhile(lambda node: node is not user, _after(match.nodes[0]))
    others = [node for node in between if node not in match.nodes and not changes_nothing(node)]
    # What a convolution or norm made is a tensor of its own; activations on the way may have worked in place on it.
    made_by = (*NORMS, *NORMS.values())
    chain = [match.nodes[0].all_input_nodes[0]]
    while activation_of(module, chain[-1]):
        chain.append(chain[-1].all_input_nodes[0])
    source = chain[-1]
    own = source.target is F.batch_norm
    own = own or source.op == "call_module" and isinstance(module.get_submodule(source.target), made_by)
    return not others or own and not any(node in other.all_input_nodes for node in chain for other in others)


def _after(node: fx.Node) -> Iterator[fx.Node]:
    while node.next.op != "root":
        node = node.next
        yield node
