"""Finds the blocks in a traced forward: a convolution or a norm, and what may run in the same kernel after it."""

import operator
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

import torch.nn.functional as F
from torch import fx, nn

from ..blocks.block import ActivatedBlock, AveragedBlock, Block, CallBlock, ConvBlock, PoolBlock
from ..blocks.modules import LEAVES, MAX_POOL, POOLS, commute, intercepted, side_by_side, window_of
from ..ops.activations import PRELU, is_monotone
from ..ops.support import pair
from ..patching.reporting import Status
from .nodes import (
    ADD_CALLS,
    CONV_CALLS,
    IN_PLACE_ADDS,
    NORMS,
    POOL_CALLS,
    activation_of,
    batch_norm_of,
    changes_nothing,
    convolves_with_parameter,
    is_max_pooling,
    padding_argument,
    padding_of,
    scale_and_shift,
    slopes_of,
)
from .through import name_of


@dataclass(frozen=True)
class Match:
    """A block in a graph, and the nodes it covers, in order. One of them is the `addition` of a residual, if any. Where
    no module of torch's normalizes, `statistics` are what F.batch_norm gets after its input, or a scale and a shift."""

    block: Block
    nodes: tuple[fx.Node, ...]
    status: Status = "swapped"
    reason: str = ""
    addition: fx.Node | None = None
    statistics: tuple = ()

    @property
    def in_caller(self) -> bool:
        """Whether it takes a rewritten forward, because no module of its own computes just this."""
        return self.status == "fused" or (self.status == "swapped" and not self.block.members)

    @property
    def name(self) -> str:
        """What the site goes by: the convolution, pooling or norm, or the call of its function."""
        return self.block.site or name_of(self.call if isinstance(self.block, CallBlock) else self.nodes[0])

    @property
    def call(self) -> fx.Node:
        """Of a `CallBlock`, that of the convolution."""
        return next(node for node in self.nodes if node.target in CONV_CALLS)

    @property
    def residual(self) -> fx.Node | None:
        """What it adds, computed outside of it: by another block, perhaps, whose node then changes as that is fused."""
        return self.addition and next(value for value in self.addition.args if value not in self.nodes)

    @property
    def place(self) -> fx.Node:
        """The node in whose place the block runs: its first, since what comes later may overwrite the input; with a
        residual the addition, up to which nothing does."""
        return self.addition or self.nodes[0]


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
            start = _after_padding(module, Match(kind(node.target), (node,)))
            match = _extend(module, start, extensions, free)
            if match.nodes[-1].target is operator.getitem:  # a slice by itself is a view, which has strides of its own
                match = start
            if match.status == "swapped" and type(child) not in LEAVES:
                continue
        elif node.op == "call_function" and node.target in POOL_CALLS:
            refusal = accept(node)
            match = Match(PoolBlock(POOL_CALLS[node.target]), (node,), "left" if refusal else "swapped", refusal)
        elif node.op == "call_function" and node.target in CONV_CALLS and convolves_with_parameter(node):
            refusal = accept(node)
            match = Match(CallBlock(CONV_CALLS[node.target]), (node,), "left" if refusal else "swapped", refusal)
            match = match if refusal else _extend(module, _after_padding(module, match), _CALLED, free)
        elif statistics := batch_norm_of(node):
            start = Match(ActivatedBlock("batch_norm", None), (node,), statistics=statistics)
            match = _extend(module, start, _ACTIVATION, free)
            if match.status == "swapped" or accept(node):
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


def _after_padding(module: nn.Module, match: Match) -> Match:
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


def _with_slice(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
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
    return _longer(match, user, padding=(0, last.stop))


def _with_contiguous(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """The copy of such a slice, which the block does not need."""
    sliced = isinstance(match.block.padding, tuple) and min(match.block.padding, default=0) < 0
    return _longer(match, user) if sliced and user.target == "contiguous" and not user.kwargs else None


def _with_norm(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    if not user.args or user.args[0] is not match.nodes[-1]:
        return None
    if statistics := batch_norm_of(user):
        return replace(_longer(match, user, norm_call=True), statistics=statistics)
    kind = type(module.get_submodule(match.name))
    if user.op != "call_module" or type(module.get_submodule(user.target)) is not NORMS[kind]:
        return None
    return _longer(match, user, norm=user.target)


def _with_frozen_norm(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """A multiplication and an addition by which batch norm's statistics are frozen."""
    found = scale_and_shift(user, match.nodes[-1])
    if found is None or match.statistics or match.block.norm is not None:
        return None
    *statistics, addition = found
    return replace(_longer(_longer(match, user, norm_call=True), addition), statistics=tuple(statistics))


def _with_residual(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
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
    return replace(_longer(match, user, residual=True), addition=user)


def _with_activation(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    text = activation_of(module, user)
    if text is None:
        return None
    if user.op == "call_module":
        return _longer(match, user, activation=text, activation_module=user.target)
    return _longer(match, user, activation=text, slopes=slopes_of(user) if text == PRELU else None)


def _with_norm_behind(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """Batch norm after the activation, which then is the inner one."""
    inner = _with_inner(match)
    return inner and _with_norm(module, inner, user)


def _with_residual_behind(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """The same of an addition."""
    inner = _with_inner(match)
    return inner and _with_residual(module, inner, user)


def _with_inner(match: Match) -> Match | None:
    block = match.block
    normed = isinstance(block, ConvBlock) and (block.norm is not None or block.norm_call)
    if block.activation in (None, PRELU) or normed or block.residual:
        return None
    inner = {"inner": block.activation, "inner_module": block.activation_module}
    return replace(match, block=replace(block, **inner, activation=None, activation_module=None))


def _behind(extend: Callable) -> Callable:
    """`extend`, of what has an inner activation."""

    def extended(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
        return None if match.block.inner is None else extend(module, match, user)

    return extended


def _with_pool(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """Max-pooling, if the activation before it never falls, so that both orders give the same."""
    if match.addition is not None or match.block.inner is not None:
        return None
    if not (match.block.activation is None or is_monotone(match.block.activation)):
        return None
    if not is_max_pooling(module, user) or user.target is F.max_pool2d_with_indices:
        return None
    if user.op == "call_module":
        suits = window_of(module.get_submodule(user.target)) is not None
        return _longer(match, user, pool_module=user.target) if suits else None
    given = dict(zip(("input", *MAX_POOL), user.args, strict=False)) | user.kwargs
    del given["input"]
    window = side_by_side(**given)
    return None if window is None else _longer(match, user, window=window, ceil_mode=given.get("ceil_mode", False))


def _with_late_activation(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    text = activation_of(module, user)
    if text is None or not (match.block.pools and match.block.activation is None and is_monotone(text)):
        return None
    return _with_activation(module, replace(match, block=replace(match.block, pool_first=True)), user)


def _with_average(module: nn.Module, match: Match, user: fx.Node) -> Match | None:
    """Average pooling, if nothing else is in the block."""
    plain, pool = ConvBlock("conv2d", match.name), user.op == "call_module" and module.get_submodule(user.target)
    if match.block != plain or type(pool) not in (nn.AvgPool2d, nn.AdaptiveAvgPool2d):
        return None
    if not commute(module.get_submodule(match.name), pool):
        return None
    block = AveragedBlock(match.name, POOLS[type(pool)], user.target)
    return replace(match, block=block, nodes=(*match.nodes, user), status="fused")


def _longer(match: Match, node: fx.Node, **block) -> Match:
    return replace(match, block=replace(match.block, **block), nodes=(*match.nodes, node), status="fused")


_WITHOUT_KERNEL = nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.SyncBatchNorm
_ACTIVATION = {"activation": _with_activation}
_NORM = {"batch norm": _with_norm, "frozen batch norm": _with_frozen_norm}
_EPILOGUE = {
    **_NORM,
    "addition": _with_residual,
    **_ACTIVATION,
    "batch norm behind the activation": _with_norm_behind,
    "addition behind that": _behind(_with_residual),
    "addition behind the activation": _with_residual_behind,
    "activation behind that": _behind(_with_activation),
}
_CALLED = {what: extend for what, extend in _EPILOGUE.items() if "norm" not in what}
_POOLED = {"max-pooling": _with_pool, "activation of the maxima": _with_late_activation}
_NORMED = {"batch norm": _with_norm, **_ACTIVATION}
KINDS = {
    nn.Conv1d: (partial(ConvBlock, "conv1d"), {"slice": _with_slice, "copy": _with_contiguous, **_EPILOGUE}),
    nn.Conv2d: (partial(ConvBlock, "conv2d"), _EPILOGUE | _POOLED | {"average pooling": _with_average}),
    **{pool: (partial(PoolBlock, name), {}) for pool, name in POOLS.items()},
    nn.ConvTranspose2d: (partial(ActivatedBlock, "conv_transpose2d"), _NORMED),
    nn.Linear: (partial(ActivatedBlock, "linear"), _ACTIVATION),
    nn.BatchNorm1d: (partial(ActivatedBlock, "batch_norm1d"), _ACTIVATION),
    nn.BatchNorm2d: (partial(ActivatedBlock, "batch_norm2d"), _ACTIVATION),
}


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
