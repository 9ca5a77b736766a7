"""Why torch runs the modules that are no part of a site: convolutions and poolings without a kernel, norms and
activations by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..blocks.modules import ACTIVATION_MODULES, intercepted
from ..patching.reporting import Site
from .match import Match
from .patterns import KINDS
from .trace import Trace

LAZY = "it has no weights before its first call: run the model once, then patch it, or give patch a sample"
_NN = "torch.nn.modules."
_CONVOLUTIONS = _NN + "conv", _NN + "pooling"
_OTHERS = _NN + "batchnorm", _NN + "instancenorm", _NN + "normalization", _NN + "activation"
_SUPPORTED = KINDS.keys() | ACTIVATION_MODULES.keys()

Forwards = Mapping[nn.Module, list[tuple[Trace, list[Match]]]]


@dataclass(frozen=True)
class _Place:
    """Where a module is called: after the node `before`, in a forward of `owner` whose blocks are `matches`."""

    owner: nn.Module
    before: fx.Node
    matches: list[Match]

    @property
    def reason(self) -> str:
        """What is said of the block before it, or what that is."""
        for match in self.matches:
            if self.before in match.nodes:
                return match.reason or f"not fused: it follows {match.block.pattern}"
        return f"not fused: it follows {self._name}"

    @property
    def _name(self) -> str:
        if self.before.op == "call_module":
            return type(self.owner.get_submodule(self.before.target)).__name__
        if self.before.op in ("call_function", "call_method"):
            return getattr(self.before.target, "__name__", self.before.target)
        return "an input"


def uncovered(
    model: nn.Module,
    sites: list[Site],
    forwards: Forwards,
    refusals: Mapping[nn.Module, str],
    note: Callable[[str], str],
) -> tuple[list[Site], list[Site]]:
    """The convolutions and poolings of `model` beside its `sites`, and the norms and activations. `refusals`: why some
    must be left; `note(fqn)`: why the forward that calls a module could not be traced."""
    covered = {model.get_submodule(member) for site in sites for member in site.members}
    inside = {prefix for site in sites for prefix in _above(site.fqn)}  # blocks of calls that modules of their own make
    called = None
    convolutions, others = [], []
    for fqn, module in model.named_modules():
        family = _family(module)
        if family is None or module in covered or fqn in inside:
            continue
        called = called or _calls(forwards)
        reason = refusals.get(module) or _reason(module, note(fqn), called.get(module))
        site = Site(fqn, type(module).__name__, "left", reason, (fqn,))
        (convolutions if family in _CONVOLUTIONS else others).append(site)
    return convolutions, others


def is_lazy(module: nn.Module) -> bool:
    """Whether it has no weight yet: when it gets one, it changes its class."""
    return isinstance(module, LazyModuleMixin)


def _family(module: nn.Module) -> str | None:
    """The file of torch that its class, or the first of its bases there, is from."""
    if isinstance(module, nn.MultiheadAttention):  # in the file of activations
        return None
    if type(module).__module__.startswith("torch.ao.nn."):  # of classes named as those that they stand for
        name = type(module).__module__.rpartition(".")[2]
        return _NN + name if _NN + name in _CONVOLUTIONS + _OTHERS else None
    return next((cls.__module__ for cls in type(module).__mro__ if cls.__module__ in _CONVOLUTIONS + _OTHERS), None)


def _above(fqn: str) -> Iterator[str]:
    while fqn:
        fqn = fqn.rpartition(".")[0]
        yield fqn


def _calls(forwards: Forwards) -> dict[nn.Module, _Place]:
    places = {}
    for owner, traced in forwards.items():
        for trace, matches in traced:
            for node in trace.graph.find_nodes(op="call_module"):
                if node.all_input_nodes:
                    child = owner.get_submodule(node.target)
                    places.setdefault(child, _Place(owner, node.all_input_nodes[0], matches))
    return places


def _reason(module: nn.Module, note: str, place: _Place | None) -> str:
    if type(module).__module__.startswith("torch.ao.nn."):
        return "it is quantized, or prepared for that"
    if is_lazy(module):
        return LAZY
    if type(module) not in _SUPPORTED:
        return "no kernel computes it"
    if note:
        return note
    if intercepted(module):
        return "a hook wants its input or output"
    if place is None:
        return "no forward that could be traced calls it, with anything in a kernel"
    return place.reason
