"""Finds the sites of a model: its convolution, pooling and dropout modules, and the blocks in the forwards that call
them.

Every forward is traced by itself with its children as leaves, so that one that cannot be traced costs one block and
not the model. Nothing is changed here: `patch` swaps the leaves and rewrites the forwards.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from ..blocks.modules import LEAVES
from ..patching.reporting import Site
from .match import Match
from .parts import joined
from .patterns import KINDS, matches
from .rest import LAZY, is_lazy, uncovered
from .through import Traces, name_of, needed
from .trace import Trace
from .watch import CannotTrace

EXCLUDED = "excluded"  # the reason of sites that the user excluded
IN_TRAINING = "in training alone"
_BOTH = frozenset({False, True})  # modes: `training` of modules

Accept = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Capture:
    """leaves: the modules to swap. forwards: per calling module, its traces and what was matched in each. sites: in
    module order; one that is another in training is listed once, as it is in evaluation. rest: the norms and
    activations that are in none."""

    leaves: list[nn.Module]
    forwards: dict[nn.Module, list[tuple[Trace, list[Match]]]]
    sites: list[Site]
    rest: list[Site]


def capture(model: nn.Module, accept: Accept) -> Capture:
    """Every site of `model`. `accept(fqn, module)` says which ones may be touched; the call of a function goes by the
    name `caller.call` and is asked about with the calling module."""
    refusals = {
        module: _refusal(module) or ("" if accept(fqn, module) else EXCLUDED)
        for fqn, module in model.named_modules()
        if isinstance(module, tuple(KINDS))
    }
    leaves = {module: None for module, refusal in refusals.items() if not refusal}  # in their order
    recorded, seen_through = Traces(closed={module for module in refusals if type(module) in KINDS}), set()
    place = {fqn: place for place, (fqn, _) in enumerate(model.named_modules(remove_duplicate=False))}
    names = {module: fqn for fqn, module in model.named_modules()}
    forwards, untraced, found, alone = {}, {}, _Found(), []

    def note(fqn):
        return untraced.get(_caller(model, fqn), "")

    for fqn, module in model.named_modules():
        calls_itself = refusals.get(module) == _subclassed(module) and accept(fqn, module)
        if module in refusals and not calls_itself:
            if isinstance(module, tuple(LEAVES)):  # else it is one that is fused but never swapped
                alone.append((fqn, module))
        elif not refusals.keys().isdisjoint(module.modules()) and _has_forward(module):
            try:
                blocks, through = _blocks(module, fqn, recorded, leaves, accept)
            except CannotTrace as refusal:
                untraced[fqn] = f"nothing fused: {type(module).__name__}.forward cannot be traced: {refusal}"
                blocks, through = [], set()
            if calls_itself and not any(matched for _, matched in blocks):
                if isinstance(module, tuple(LEAVES)):
                    found.add(_leaf_site(fqn, module, refusals[module], ""), place[fqn])
                continue
            if blocks:
                forwards[module] = blocks
            if module in seen_through:  # whoever looks through it lists what is in it
                continue
            seen_through.update(through)
            lacking = _untraced_mode(trace for trace, _ in blocks)
            for trace, matched in blocks:
                modes = _BOTH if trace.training is None or lacking else {trace.training}
                for match in matched:
                    site = block_site(names, module, match)
                    if lacking and match.in_caller:
                        other = f"not in {lacking}: {type(module).__name__}.forward cannot be traced then"
                        site = replace(site, reason=_both(site.reason, other))
                    found.add(site, place[fqn] + _depth_first_place(module, match.nodes[0]), modes)
    for fqn, module in alone:
        if not found.covers(fqn):  # else a forward that calls it has listed it
            found.add(_leaf_site(fqn, module, refusals[module], note(fqn)), place[fqn])
    if all(site.pattern.startswith(("linear", "dropout")) for site in found.listed()):  # it is no convolutional network
        leaves, forwards, found, note = {}, {}, _Found(), lambda fqn: "no convolution here runs in a kernel"
    else:
        for fqn, module in model.named_modules():
            if type(module) is nn.Dropout and module.p:
                site = _dropout_site(fqn, module, accept)
                found.add(site, place[fqn])
                if site.status != "left":
                    leaves[module] = None
    without_kernel, rest = uncovered(model, found.listed(), forwards, refusals, note)
    for site in without_kernel:
        excluded = not accept(site.fqn, model.get_submodule(site.fqn))
        found.add(replace(site, reason=EXCLUDED) if excluded else site, place[site.fqn])
    return Capture([leaf for leaf in leaves if type(leaf) in LEAVES], forwards, found.listed(), rest)


class _Found:
    """Sites, in which modes each is one, and its place in the model."""

    def __init__(self):
        self._modes: dict[Site, set[bool]] = defaultdict(set)
        self._places: dict[Site, int] = {}
        self._covered: set[str] = set()

    def add(self, site: Site, place: int, modes: Set[bool] = _BOTH) -> None:
        self._modes[site] |= modes
        self._places[site] = place
        self._covered.update(site.members)

    def covers(self, fqn: str) -> bool:
        return fqn in self._covered

    def listed(self) -> list[Site]:
        """In order; two that are one in a mode each, under the same name, as one."""
        alone = defaultdict(lambda: ([], []))  # per name those of evaluation, and of training
        for site, modes in self._modes.items():
            if modes != _BOTH:
                alone[site.fqn][modes == {True}].append(site)
        places = {site: place for site, place in self._places.items() if self._modes[site] == _BOTH}
        for evaluation, training in chain(*(zip_longest(*pair) for pair in alone.values())):
            place = min(self._places[site] for site in (evaluation, training) if site)
            places[_of_two_modes(evaluation, training)] = place
        return sorted(places, key=places.get)


def _of_two_modes(evaluation: Site | None, training: Site | None) -> Site:
    """One site of two, or of one that the other mode has not."""
    if evaluation is None:
        return replace(training, reason=_both(training.reason, IN_TRAINING))
    if training is None:
        return replace(evaluation, reason=_both(evaluation.reason, "in evaluation alone"))
    same = (evaluation.status, evaluation.pattern) == (training.status, training.pattern)
    other = training.reason if same else _both(f"in training: {training.pattern}", training.reason)
    members = tuple(dict.fromkeys((*evaluation.members, *training.members)))
    return replace(evaluation, reason=_both(evaluation.reason, other), members=members)


def _both(*reasons: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, reasons)))


def _blocks(
    module: nn.Module, fqn: str, recorded: Traces, leaves: Container[nn.Module], accept: Accept
) -> tuple[list[tuple[Trace, list[Match]]], set[nn.Module]]:
    """The traces of `module` with the blocks in each, and the modules that they look through. Raises `CannotTrace`."""

    def refusal(node):
        return "" if accept(joined(fqn, name_of(node)), module) else EXCLUDED

    def found(chosen):
        traces = recorded.through(module, chosen)
        return [(trace, list(matches(module, trace.graph, leaves, refusal))) for trace in traces]

    everything = found(lambda path: True)
    blocks = [match for _, matched in everything for match in matched if match.status == "fused"]
    paths: set[str] = set()
    while more := set().union(*(needed(match.nodes, paths) for match in blocks)) - paths:
        paths |= more
    enough = all(paths.issuperset(trace.through) for trace, _ in everything)
    return everything if enough else found(paths.__contains__), {module.get_submodule(path) for path in paths}


def _untraced_mode(traces: Iterable[Trace]) -> str:
    """The mode, if any, in which there is no trace."""
    modes = {trace.training for trace in traces}
    return {frozenset({True}): "evaluation", frozenset({False}): "training"}.get(frozenset(modes), "")


def _refusal(module: nn.Module) -> str:
    """Why torch's own code must go on running `module`; empty if it need not."""
    if is_parametrized(module):
        return "it is parametrized: a kernel's weight is packed once, not at every call"
    if is_lazy(module):
        return LAZY
    if type(module) not in LEAVES | KINDS:
        return _subclassed(module)
    if "forward" in vars(module):
        return "the instance has a forward of its own"
    if getattr(module, "qconfig", None) is not None:
        return "it is prepared for quantization"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode is {module.padding_mode!r}; only 'zeros' is supported"
    return ""


def _subclassed(module: nn.Module) -> str:
    """Why a subclass of a convolution or pooling is not swapped. Its forward, if it can be traced, may call one."""
    return f"{type(module).__name__} is a subclass and may compute something else"


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
    kind, extensions = next(KINDS[cls] for cls in type(module).__mro__ if cls in KINDS)
    reason = refusal or (note if extensions else "")
    return Site(fqn, kind(fqn).pattern, "left" if refusal else "swapped", reason, (fqn,))


def _dropout_site(fqn: str, module: nn.Dropout, accept: Accept) -> Site:
    """Beside the site, if any, in which it is nothing in evaluation."""
    refusal = _refusal(module) or ("" if accept(fqn, module) else EXCLUDED)
    return Site(fqn, "dropout", "left" if refusal else "swapped", refusal or IN_TRAINING, (fqn,))


def block_site(names: Mapping[nn.Module, str], owner: nn.Module, match: Match) -> Site:
    """The site of a block in a forward of `owner`. A module that is in the model twice goes by its first name."""
    block, paths = match.block, dict.fromkeys((*match.block.members, *sorted(needed(match.nodes))))
    members = dict.fromkeys(names[owner.get_submodule(path)] for path in paths)
    fqn = joined(names[owner], match.name) if block.site is None else names[owner.get_submodule(block.site)]
    return Site(fqn, block.pattern, match.status, match.reason, tuple(members))


def _depth_first_place(module: nn.Module, node: fx.Node) -> int:
    """Where the call of `node` belongs among the modules in `module`: at the module called, or after the last one."""
    while node.op not in ("call_module", "root"):
        node = node.prev
    if node.op == "root":
        return 0
    names = [name for name, _ in module.named_modules(remove_duplicate=False)]
    return max(place for place, name in enumerate(names) if f"{name}.".startswith(f"{node.target}."))
