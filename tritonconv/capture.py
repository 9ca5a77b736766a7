"""Finds the sites of a model: its convolution and pooling modules, and the blocks in the forwards that call them.

Every forward is traced by itself with its children as leaves, so that one that cannot be traced costs one block and
not the model. Nothing is changed here: `patch` swaps the leaves and rewrites the forwards.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from .blocks import LEAVES, ConvBlock, PoolBlock, intercepted
from .reporting import Site, Status
from .trace import CannotTrace, Trace, traces

EXCLUDED = "excluded"  # the reason of sites that the user excluded

# How a graph calls them: functions, and methods by their name.
RELU_CALLS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}
MAX_POOL_CALLS = {F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d}

Accept = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Match:
    """A block in a graph, and the nodes it covers, in order."""

    block: ConvBlock | PoolBlock
    nodes: tuple[fx.Node, ...]
    status: Status
    reason: str = ""

    @property
    def in_caller(self) -> bool:
        """Whether it takes a rewritten forward, because no module of its own computes just this."""
        return self.status == "fused" or (self.status == "swapped" and not self.block.members)


@dataclass(frozen=True)
class Capture:
    """leaves: the modules to swap. forwards: per calling module, its traces and what was matched in each."""

    leaves: list[nn.Module]
    forwards: dict[nn.Module, list[tuple[Trace, list[Match]]]]
    sites: list[Site]


def capture(model: nn.Module, accept: Accept) -> Capture:
    """Every site of `model`. `accept(fqn, module)` says which ones may be touched; the call of a function goes by the
    name `caller.call` and is asked about with the calling module."""
    refusals = {
        module: _refusal(module) or ("" if accept(fqn, module) else EXCLUDED)
        for fqn, module in model.named_modules()
        if isinstance(module, tuple(LEAVES))
    }
    leaves = [module for module, refusal in refusals.items() if not refusal]
    place = {fqn: place for place, (fqn, _) in enumerate(model.named_modules(remove_duplicate=False))}
    forwards, untraced, sites = {}, {}, {}
    for fqn, module in model.named_modules():
        if module in refusals:
            if not any(site.fqn == fqn for site in sites):  # else the forward that calls it has listed it
                note = untraced.get(_caller(model, fqn), "")
                sites[_leaf_site(fqn, module, refusals[module], note)] = place[fqn]
        elif _has_forward(module) and not refusals.keys().isdisjoint(module.modules()):
            try:
                found = traces(module)
            except CannotTrace as refusal:
                untraced[fqn] = f"nothing fused: {type(module).__name__}.forward cannot be traced: {refusal}"
                continue
            forwards[module] = [(trace, list(_match(fqn, module, trace.graph, leaves, accept))) for trace in found]
            for _, matches in forwards[module]:
                for match in matches:
                    sites[_block_site(fqn, match)] = place[fqn] + _depth_first_place(module, match.nodes[0])
    return Capture(leaves, forwards, sorted(sites, key=sites.get))


def _refusal(module: nn.Conv2d | nn.MaxPool2d) -> str:
    """Why torch's own code must go on running `module`; empty if it need not."""
    if is_parametrized(module):
        return "it is parametrized"
    if type(module) not in LEAVES:
        return f"{type(module).__name__} is a subclass and may compute something else"
    if "forward" in vars(module):
        return "the instance has a forward of its own"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode is {module.padding_mode!r}; only 'zeros' is supported"
    return ""


def _has_forward(module: nn.Module) -> bool:
    """Lists and dicts of modules have none: whoever holds them calls what is in them."""
    return type(module).forward is not nn.Module.forward


def _caller(model: nn.Module, fqn: str) -> str:
    """The module whose forward calls `fqn`: its parent, or whoever holds the list that it is in."""
    parent = fqn.rpartition(".")[0]
    while parent and not _has_forward(model.get_submodule(parent)):
        parent = parent.rpartition(".")[0]
    return parent


def _leaf_site(fqn: str, module: nn.Module, refusal: str, note: str) -> Site:
    """The site of a leaf that no traced forward calls."""
    block, note = (ConvBlock(fqn), note) if isinstance(module, nn.Conv2d) else (PoolBlock(fqn), "")
    return Site(fqn, block.pattern, "left" if refusal else "swapped", refusal or note, (fqn,))


def _block_site(fqn: str, match: Match) -> Site:
    first = match.nodes[0]
    name = first.target if first.op == "call_module" else first.name
    members = tuple(_join(fqn, member) for member in match.block.members)
    return Site(_join(fqn, name), match.block.pattern, match.status, match.reason, members)


def _depth_first_place(module: nn.Module, node: fx.Node) -> int:
    """Where the call of `node` belongs among the modules in `module`: at the module called, or after the last one."""
    while node.op not in ("call_module", "root"):
        node = node.prev
    if node.op == "root":
        return 0
    names = [name for name, _ in module.named_modules(remove_duplicate=False)]
    return max(place for place, name in enumerate(names) if f"{name}.".startswith(f"{node.target}."))


def _match(
    fqn: str, module: nn.Module, graph: fx.Graph, leaves: Container[nn.Module], accept: Accept
) -> Iterator[Match]:
    for node in graph.nodes:
        if node.op == "call_module" and (child := module.get_submodule(node.target)) in leaves:
            if isinstance(child, nn.Conv2d):
                yield _match_conv(module, node)
            else:
                yield Match(PoolBlock(node.target), (node,), "swapped")
        elif node.op == "call_function" and node.target in MAX_POOL_CALLS:
            if accept(_join(fqn, node.name), module):
                yield Match(PoolBlock(), (node,), "swapped")
            else:
                yield Match(PoolBlock(), (node,), "left", EXCLUDED)


def _match_conv(module: nn.Module, node: fx.Node) -> Match:
    relus = [user for user in node.users if _is_relu(module, user)]
    alone = ConvBlock(node.target)
    if not relus:
        return Match(alone, (node,), "swapped")
    if len(node.users) > 1:
        return Match(alone, (node,), "swapped", "ReLU not fused: the convolution's output is used elsewhere too")
    (relu,) = relus
    block = ConvBlock(node.target, "relu", relu.target if relu.op == "call_module" else None)
    if any(intercepted(module.get_submodule(member)) for member in block.members):
        return Match(alone, (node,), "swapped", "ReLU not fused: a hook wants the value between the two")
    return Match(block, (node, relu), "fused")


def _is_relu(module: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(node.target)) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in RELU_CALLS


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name
