"""Puts what children do into their caller's trace, where a block crosses the border between them."""

from __future__ import annotations

import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from types import FunctionType

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from ..blocks.modules import intercepted
from .nodes import NORMS, asks_dimensions, is_activated_copy
from .parts import Conditions, Effect, effect_of, joined, sizes_of
from .trace import AsksEffect, Trace, structure, traces
from .watch import CannotTrace

# Of torch's own modules those that are looked through; what the others do, nobody needs to see.
_OPEN = (nn.Identity, nn.Sequential, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_OPEN += nn.ConstantPad1d, nn.ZeroPad1d, nn.ConstantPad2d, nn.ZeroPad2d
_OUT_OF_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout}


class Traces:
    """The traces of modules, each recorded once for all that are alike, and with what is in their children. `closed`:
    the modules that are never looked through."""

    def __init__(self, closed: Collection[nn.Module]):
        self._closed = closed
        self._own: dict[nn.Module, list[Trace] | CannotTrace] = {}
        self._alike: dict[tuple, list[list[Trace]]] = defaultdict(list)
        self._open: dict[nn.Module, bool] = {}

    def of(self, module: nn.Module) -> list[Trace]:
        """Those of its own forward. Raises `CannotTrace`."""
        if module not in self._own:
            self._own[module] = self._recorded(module)
        if isinstance(self._own[module], CannotTrace):
            raise self._own[module]
        return self._own[module]

    def _recorded(self, module: nn.Module) -> list[Trace] | CannotTrace:
        alike = self._alike[structure(module)]
        for found in alike:
            if all(trace.suits(module) for trace in found):
                return found
        effects: dict[str, Effect | None] = {}
        while True:
            try:
                alike.append(traces(module, effects))
                return alike[-1]
            except AsksEffect as question:
                (path,) = question.args
                effects[path] = self._effect(module.get_submodule(path))
            except CannotTrace as refusal:
                return refusal

    def _effect(self, module: nn.Module) -> Effect | None:
        """What it does to sizes, in both modes; None if it is not known."""
        if (effect := effect_of(module)) is not None or not self._is_open(module):
            return effect
        conditions, found = Conditions(), [trace for trace in self.of(module) if trace.arity == 1]
        for trace in found:
            conditions.update("", trace.reads, ("", *trace.through))
        conditions.reads.get("", {}).pop("training", None)
        outputs = (next(iter(reversed(trace.graph.nodes))).args[0] for trace in found)

        def inner(path: str) -> Effect | None:
            return self._effect(module.get_submodule(path))

        sizes = {isinstance(y, fx.Node) and sizes_of(y, inner, conditions) or None for y in outputs}
        both = {trace.training for trace in found} in ({None}, {True, False})
        if len(sizes) > 1 or None in sizes or not both or any(trace.asks or trace.inputs for trace in found):
            return None
        return Effect(sizes.pop(), conditions.reads, tuple(conditions.through))

    def through(self, module: nn.Module, chosen: Callable[[str], bool]) -> Iterator[Trace]:
        """Those of its forward, with the children whose paths are `chosen` looked through if that can be."""
        for own in self.of(module):
            modes = (module.training, not module.training) if own.training is None else (own.training,)
            for mode in modes:
                trace = self._spliced(module, own, mode, chosen)
                yield trace
                if trace.training is None:
                    break

    def _spliced(self, module: nn.Module, own: Trace, mode: bool, chosen: Callable[[str], bool]) -> Trace:
        graph, reads, through = fx.Graph(), {}, {}

        def child(path: str, node: fx.Node) -> Trace | None:
            # Of one input: others may be None in the end, or of any type.
            plain = node.op == "call_module" and len(node.args) == 1 and not node.kwargs
            if not plain or not chosen(path) or not self._is_open(inner := module.get_submodule(path)):
                return None
            if mode and type(inner) is nn.Dropout:  # a border, and a kernel of its own
                reads.setdefault(path, {})["training"] = mode
                return None
            for trace in self.of(inner):
                if not trace.asks and not trace.inputs and trace.training in (None, mode) and trace.arity == 1:
                    return trace
            return None

        def copy(trace: Trace, within: tuple[str, ...] = (), value: fx.Node | None = None):
            """The nodes of `trace`, of the last of the modules `within` which it is, with `value` for its input if that
            is known; returns its output."""
            owner = within[-1] if within else ""
            for path, noted in trace.reads.items():
                reads.setdefault(joined(owner, path), {}).update(noted)
            through.update((joined(owner, path), None) for path in trace.through)
            into = {}
            for node in trace.graph.nodes:
                path = joined(owner, node.target) if node.op in ("call_module", "get_attr") else node.target
                if node.op == "output":
                    return fx.map_arg(node.args[0], into.get)
                if node.op == "placeholder" and value is not None:
                    into[node] = value
                elif (inner := child(path, node)) and isinstance(given := into.get(node.args[0]), fx.Node):
                    through[path] = None
                    into[node] = copy(inner, (*within, path), given)
                    if into[node] is given:
                        given.meta["passed"].append((*within, path))
                else:
                    into[node] = graph.node_copy(node, into.get)
                    into[node].target = path
                    into[node].meta = {"within": within, "name": joined(owner, node.name), "passed": []}
            raise AssertionError("a graph without an output")

        graph.output(copy(own))
        trace = Trace(graph, reads, own.kind, own.asks, tuple(through), own.inputs)
        _simplify(module, graph)
        return trace

    def _is_open(self, module: nn.Module) -> bool:
        if module not in self._open:
            self._open[module] = self._can_be_open(module)
        return self._open[module]

    def _can_be_open(self, module: nn.Module) -> bool:
        if module in self._closed or intercepted(module) or is_parametrized(module):
            return False
        if isinstance(module, LazyModuleMixin):
            return False
        if type(module) not in _OPEN and type(module).__module__.startswith(("torch.nn.", "torch.ao.")):
            return False
        try:
            return bool(self.of(module))
        except CannotTrace:
            return False


def needed(nodes: Sequence[fx.Node], through: Set[str] = frozenset()) -> set[str]:
    """The paths of modules that must be looked through to see these nodes, and the values between them, at once; none
    if one of them, beside those looked `through` anyway, sees them all."""
    within = [node.meta["within"] for node in nodes] + [path for node in nodes[:-1] for path in node.meta["passed"]]
    return set() if set.intersection(*map(set, within)) - through else set().union(*within)


def owner_of(node: fx.Node) -> str:
    """The path of the module whose forward made the call."""
    return next(iter(reversed(node.meta["within"])), "")


def name_of(node: fx.Node) -> str:
    """What a call in a trace goes by: its path below the module whose forward is traced."""
    return node.meta.get("name", node.name)


def _simplify(module: nn.Module, graph: fx.Graph) -> None:
    """Removes what changes no value, and puts out of the way what only gets a parameter or asks for dimensions."""
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node in list(graph.nodes):
        if node.op == "get_attr" and node is not first:
            first.prepend(node)
        elif _returns_its_input(node):
            source = node.all_input_nodes[0]
            node.replace_all_uses_with(source)
            source.meta["passed"] += [*node.meta["passed"], node.meta["within"]]
            graph.erase_node(node)
        elif asks_dimensions(node):
            while _keeps_dimensions(module, node.args[0]):
                node.replace_input_with(node.args[0], node.args[0].all_input_nodes[0])
            if node.args[0].op != "placeholder":
                node.args[0].append(node)
        elif node.target in _OUT_OF_PLACE and _is_private(module, node.args[0]):
            # Nobody can tell, but for the gradient of a kernel that keeps its result, where torch keeps what goes in.
            node.target = _OUT_OF_PLACE[node.target]


def _is_private(module: nn.Module, node: fx.Node) -> bool:
    """Whether the value, which one node reads, is an activation's in memory of its own."""
    return len(node.users) == 1 and is_activated_copy(module, node)


def _keeps_dimensions(module: nn.Module, node: fx.Node) -> bool:
    """Whether its output has as many dimensions as its input."""
    kinds = *NORMS, *NORMS.values()
    return node.op == "call_module" and len(node.args) == 1 and type(module.get_submodule(node.target)) in kinds


def _returns_its_input(node: fx.Node) -> bool:
    """Whether it calls a function for training alone, in evaluation: dropout, stochastic depth …"""
    if node.op != "call_function":
        return False
    if node.target in _DROPOUTS:
        return _bound(node.target, node).get("training") is False
    if type(node.target) is not FunctionType or node.target.__module__.split(".")[0] == "torch" or not node.args:
        return False
    value, *others = node.args
    if node.all_input_nodes != [value] or _bound(node.target, node).get("training") is not False:
        return False
    token = object()
    try:
        return node.target(token, *others, **node.kwargs) is token
    except Exception:  # it looks at its input, which this is none
        return False


def _bound(function: Callable, node: fx.Node) -> dict[str, object]:
    try:
        bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # it has no signature
        return {}
    bound.apply_defaults()
    return bound.arguments
