"""Makes an instance run another forward by giving it a subclass of its own class, and takes it back.

One such subclass exists per original class. A class, unlike a forward put on the instance, keeps hooks, `super()`,
isinstance and deepcopy (the copy runs on its own weights) working. The instance's state stays as it is but for one
entry, its `Plan`; pickle and torch.save see neither, so that what is saved loads as the original class, where
tritonconv is absent too.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..blocks.modules import LEAVES, intercepted
from ..ops.interior import inside, is_inside, seen
from ..replay import NOT_REPLAYED, Replays
from . import interior, memory
from .reporting import Report

_PLAN = "_tritonconv"
_MISSING = object()

# A subclass holds its original class, so it must not be held here, or neither could ever be freed.
_subclasses: weakref.WeakValueDictionary[type, type] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Part:
    """What must hold for a submodule whose children a rewritten forward calls, or that steered it.

    children: their names and types.
    reads: plain attributes and the values that the forward was traced with.
    through: whether the forward does what the submodule would, and calls only its children.
    """

    children: tuple[tuple[str, type], ...]
    reads: dict[str, object]
    through: bool = False

    def holds(self, module: nn.Module) -> bool:
        return (
            children(module) == self.children
            and all(module.__dict__.get(name, _MISSING) == value for name, value in self.reads.items())
            and not (self.through and intercepted(module))
        )


@dataclass(frozen=True)
class Forward:
    """A rewritten forward, and what must hold for a call to run it.

    run: called as `run(module, *args, **kwargs)`.
    graph: what it computes; it calls children by their paths and holds none.
    fuses: whether that differs from what the module's own forward calls.
    arity, kind: how many inputs it takes; all must be given, as this type.
    inputs: what must be true of the only input.
    parts: what must hold for the module ("") and for submodules, by path.
    """

    run: Callable
    graph: fx.Graph
    fuses: bool
    arity: int
    kind: type
    inputs: tuple[Callable[[Tensor], bool], ...]
    parts: dict[str, Part]

    def __deepcopy__(self, memo) -> Forward:
        return self  # nothing of it changes, and it holds no module

    def stands(self, module: nn.Module) -> bool:
        """Whether the modules are such as it was rewritten for."""
        return all(children(module.get_submodule(path)) == part.children for path, part in self.parts.items())

    def holds(self, module: nn.Module, inputs: tuple) -> bool:
        return (
            len(inputs) == self.arity
            and all(isinstance(value, self.kind) for value in inputs)
            and all(condition(*inputs) for condition in self.inputs)
            and all(part.holds(module.get_submodule(path) if path else module) for path, part in self.parts.items())
        )


@dataclass(frozen=True)
class Plan:
    """What a patched instance carries: its rewritten forwards; whether it has an interior; its calls in inference, if
    no module that it is in could be traced; if it is the model given to `patch`, the report, and the memory format that
    its inputs are given, where the user chose one, with the names of the weights that got it."""

    forwards: tuple[Forward, ...] = ()
    interior: bool = False
    replays: Replays | None = None
    report: Report | None = None
    memory_format: torch.memory_format = torch.preserve_format
    converted: frozenset[str] = frozenset()


def children(module: nn.Module) -> tuple[tuple[str, type], ...]:
    """The names and types of the direct children of `module`."""
    return tuple((name, type(child)) for name, child in module._modules.items())


class Patched:
    """What the subclasses have in common. `_original` is the class that each stands in for."""

    _original: type[nn.Module]

    def __init_subclass__(cls):
        """Keeps a subclass hook of the original class (a registry, say) from seeing ours."""

    def __deepcopy__(self, memo):
        swapped = self.__class__
        self.__class__ = self._original  # so that the copy is made in whatever way that class makes it
        try:
            twin = copy.deepcopy(self, memo)
        finally:
            self.__class__ = swapped
        twin.__class__ = swapped
        return twin

    def __reduce_ex__(self, protocol):
        if "_original" not in vars(type(self)):  # somebody else's subclass of ours (parametrize, FSDP): their business
            return super().__reduce_ex__(protocol)
        original = object.__new__(self._original)
        original.__dict__.update(self.__dict__)
        original.__dict__.pop(_PLAN, None)
        # Protocol 1, because in later ones pickle compares the class that is saved with the class of `self`.
        return original.__reduce_ex__(1)

    def __prepare_scriptable__(self):
        """What torch.jit.script compiles in its stead."""
        return _as_before(self, {})


def install(module: nn.Module, plan: Plan) -> None:
    """Makes `module` run by `plan`, in place of any plan it has."""
    if not isinstance(module, Patched):
        module.__class__ = _subclass(type(module))
    module.__dict__[_PLAN] = plan


def remove(module: nn.Module) -> None:
    """Makes `module` what it was before `install`; nothing to do if it has no plan."""
    module.__dict__.pop(_PLAN, None)
    if "_original" in vars(type(module)):  # else somebody's subclass of ours is in the way: without a plan it is inert
        module.__class__ = type(module)._original


def _as_before(module: nn.Module | None, twins: dict[nn.Module, nn.Module]) -> nn.Module | None:
    """A twin of `module` and of all in it as they were before `install`, of the same parameters and buffers."""
    if module is None or isinstance(module, torch.jit.ScriptModule):
        return module
    if module not in twins:
        twin = twins[module] = copy.copy(module)
        twin.__dict__["_modules"] = {name: _as_before(child, twins) for name, child in module._modules.items()}
    return twins[module]


def name_of(module: nn.Module) -> str:
    """The name of its class, unpatched."""
    return getattr(type(module), "_original", type(module)).__name__


def plan_of(module: nn.Module) -> Plan | None:
    return module.__dict__.get(_PLAN)


def _subclass(original: type[nn.Module]) -> type[nn.Module]:
    subclass = _subclasses.get(original)
    if subclass is None:
        forward = _leaf_forward(original) if original in LEAVES else _planned_forward(original)
        # The original's __module__, because torch.fx takes what lives in torch.nn for a leaf.
        namespace = {"forward": forward, "_original": original, "__module__": original.__module__}
        bases = (Patched, original)
        subclass = types.new_class(f"Patched{original.__name__}", bases, exec_body=lambda ns: ns.update(namespace))
        _subclasses[original] = subclass
    return subclass


def _leaf_forward(original: type[nn.Module]) -> Callable:
    leaf = LEAVES[original]

    @functools.wraps(original.forward)
    def forward(self, input, *options, **named):
        if (plan := plan_of(self)) is None:
            return original.forward(self, input, *options, **named)
        if plan.memory_format is not torch.preserve_format:
            input = memory.arranged(input, plan.memory_format)
        return leaf(self, input, *options, **named)

    return forward


def _planned_forward(original: type[nn.Module]) -> Callable:
    @functools.wraps(original.forward)
    def forward(self, *args, **kwargs):
        plan = plan_of(self)
        if plan is None:
            return original.forward(self, *args, **kwargs)
        if plan.memory_format is not torch.preserve_format:
            args, kwargs = memory.arranged((args, kwargs), plan.memory_format)
        if plan.replays is not None and not kwargs:
            result = plan.replays(self, args)
            if result is not NOT_REPLAYED:
                return result
        if plan.interior and interior.opens(self, (args, kwargs)):
            with inside():
                result = run(self, plan, args, kwargs)
            return seen(result)
        return run(self, plan, args, kwargs)

    def run(self, plan: Plan, args: tuple, kwargs: dict) -> object:
        for candidate in plan.forwards:
            if candidate.holds(self, (*args, *kwargs.values())):
                return candidate.run(self, *args, **kwargs)
        if not (plan.forwards and is_inside()):
            return original.forward(self, *args, **kwargs)
        with inside(False):  # of this forward nothing is known
            args, kwargs = seen((args, kwargs))
            return original.forward(self, *args, **kwargs)

    return forward
