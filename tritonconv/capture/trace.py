"""Traces a module's forward into a torch.fx graph that can stand for it, or says why it cannot.

A trace is a recording, hence right only while everything else that steered the Python code stays as it was. So
`trace` notes the plain attributes that the forward read, its own and those of modules in it (the trace holds while they
keep their values), and refuses what no note could cover: side effects, control flow on data, tensors and random numbers
made on the spot, a type check on an intermediate value, gradient mode or autocast switched on the way. What remains is
the assumption that a forward does not branch on global state.
"""

import builtins
import dis
import inspect
import operator
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType

import torch
from torch import Tensor, fx, nn

from .parts import Conditions, Effect, parts_of
from .watch import CannotTrace, NoTensors, is_constant, refuse_random_numbers, watch_attributes

_tracing = threading.RLock()  # one at a time, since fx and `watch` hook nn.Module itself


class AsksEffect(CannotTrace):
    """To go on, a trace has to know the effect of the module at this path."""


@dataclass(frozen=True)
class Trace:
    """One recorded forward. It holds while every attribute has the value noted in `reads`, per path of the module that
    has it, for inputs that are all of type `kind` and of the sizes that `inputs` ask for, and while none of the modules
    looked `through` is hooked: what these do is in the graph in place of calls, or the sizes of what they give are."""

    graph: fx.Graph
    reads: dict[str, dict[str, object]]
    kind: type = Tensor
    asks: bool = False  # whether it asked for the type
    through: tuple[str, ...] = ()
    inputs: tuple[Callable[[Tensor], bool], ...] = ()

    @property
    def arity(self) -> int:
        return len(self.graph.find_nodes(op="placeholder"))

    @property
    def training(self) -> bool | None:
        """The mode that it was recorded in; None if that makes no difference."""
        return next((noted["training"] for noted in self.reads.values() if "training" in noted), None)

    def takes(self, *inputs: object) -> bool:
        return (
            len(inputs) == self.arity
            and all(isinstance(value, self.kind) for value in inputs)
            and all(condition(*inputs) for condition in self.inputs)
        )

    def suits(self, module: nn.Module) -> bool:
        """Whether it would be the same of `module`, one of the same `structure`; whose own mode does not count."""
        return all(
            type(own := getattr(module.get_submodule(path), name)) is type(value) and own == value
            for path, noted in self.reads.items()
            for name, value in noted.items()
            if (path, name) != ("", "training")
        )


def structure(module: nn.Module) -> tuple:
    """What a forward can see of a module but the values of attributes: classes, names, and which are one and the same.
    Modules that are equal in it have the same trace, if all that this read has the same values."""
    numbers: dict[int, int] = {}

    def number(value: object) -> int | None:
        return None if value is None else numbers.setdefault(id(value), len(numbers))

    def numbered(named: dict) -> tuple:
        return tuple((name, number(value)) for name, value in named.items())

    return tuple(
        (path, type(each), *each.__dict__, *map(numbered, (each._modules, each._parameters, each._buffers)))
        for path, each in module.named_modules(remove_duplicate=False)
    )


def unpacked(values: Iterable, count: int) -> tuple:
    """`values` as `a, b = values` takes them apart, here into `count` parts."""
    parts = tuple(values)
    if len(parts) != count:
        exec(f"[{', '.join(f'_{number}' for number in range(count))}] = parts", {"parts": parts})  # raises its error
    return parts


class _Value(fx.Proxy):
    """A traced value. An input says that it is of the kind that is traced for (callers of a trace see to that), any
    other nothing."""

    def __iter__(self) -> Iterator[fx.Proxy]:
        frame = sys._getframe(1)
        code = frame.f_code.co_code
        if dis.opname[code[frame.f_lasti]] != "UNPACK_SEQUENCE":
            return self.tracer.iter(self)
        count = code[frame.f_lasti + 1]
        parts = self.tracer.create_proxy("call_function", unpacked, (self, count), {})
        return iter([parts[number] for number in range(count)])

    def __len__(self) -> int:
        return self.tracer.length(self)

    def claimed(self) -> type:
        if self.node.op == "placeholder":
            self.tracer.kind_asked = True
            return self.tracer.kind
        raise CannotTrace(f"it checks the type of {self.node.name}")

    @property
    def __class__(self):
        # Asked by attribute or in a match statement. A function in C that asks must not take this for a Tensor.
        frame = sys._getframe(1)
        asks = dis.opname[frame.f_code.co_code[frame.f_lasti]] in ("LOAD_ATTR", "MATCH_CLASS")
        return self.claimed() if asks and not _is_torchs(frame) else _Value


def _in_place(function: Callable) -> Callable:
    """What `value += other` and the like do to a traced value: without it Python takes `value + other`, which leaves as
    they were all that share the value's memory."""
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    setattr(_Value, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


def _is_torchs(frame: FrameType) -> bool:
    """Whether torch's own code asks, of which the tracing gets the truth."""
    return frame.f_globals.get("__name__", "").split(".")[0] == "torch"


@contextmanager
def _answer_isinstance() -> Iterator[None]:
    """Lets isinstance() see traced values as what they claim to be."""
    original = builtins.isinstance

    def answer(value, kinds):
        if type(value) is _Value and not _is_torchs(sys._getframe(1)):
            return issubclass(value.claimed(), kinds)
        return original(value, kinds)

    finder = _Finder(original)
    sys.meta_path.insert(0, finder)
    builtins.isinstance = answer
    try:
        yield
    finally:
        builtins.isinstance = original
        sys.meta_path.remove(finder)


class _Finder:
    """Has modules that are first imported meanwhile run with the true isinstance, which they may keep: torch's compiler
    does."""

    def __init__(self, isinstance: Callable):
        self._isinstance = isinstance

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self._run, spec.loader.exec_module)
        return spec

    def _run(self, run: Callable, module: ModuleType) -> None:
        answer, builtins.isinstance = builtins.isinstance, self._isinstance
        try:
            run(module)
        finally:
            builtins.isinstance = answer


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else in-place updates of a buffer would happen now instead of at every call

    def __init__(self, kind: type, required: Sequence[str], effects: Mapping[str, Effect | None]):
        super().__init__()
        self.effects, self.conditions = effects, Conditions()
        self.modes, self.thread = _modes(), threading.get_ident()
        self.kind, self.kind_asked = kind, False
        self.required = required  # the inputs to trace for; all if there are none

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m, forward, args, kwargs):
        if threading.get_ident() != self.thread:  # fx hooks the calls of all
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        if not self.required:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.required)]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def iter(self, obj: fx.Proxy):
        return iter([obj[number] for number in range(self.length(obj))])

    def length(self, obj: fx.Proxy) -> int:
        """How many parts `obj` has, of a call that gives parts."""
        count = parts_of(obj.node, self._effect, self.conditions)
        if count is None:
            raise CannotTrace(f"it iterates over {obj.node.name}")
        return count

    def _effect(self, path: str) -> Effect | None:
        if path not in self.effects:
            raise AsksEffect(path)
        return self.effects[path]

    def to_bool(self, obj: fx.Proxy):
        raise CannotTrace(f"it branches on {obj.node.name}")

    def create_node(self, kind: str, target, *args, **kwargs) -> fx.Node:
        if _modes() != self.modes:
            raise CannotTrace("it switches gradient mode, inference mode or autocast")
        if kind == "placeholder" and target.startswith("*"):
            raise CannotTrace(f"it takes {target}")
        return super().create_node(kind, target, *args, **kwargs)

    def create_arg(self, a):
        if dict in type(a).__mro__[1:]:  # fx would make a plain dict of it
            raise CannotTrace(f"it passes on a {type(a).__name__}")
        return super().create_arg(a)


def _modes() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _trace(module: nn.Module, tracer: _Tracer) -> Trace:
    """Records `module.forward`, with its children as leaves. Raises `CannotTrace`."""
    if "forward" in vars(module):
        raise CannotTrace("the instance has a forward of its own")
    try:
        with _tracing, refuse_random_numbers(), watch_attributes(module) as reads, _answer_isinstance(), NoTensors():
            graph, found = tracer.trace(module), tracer.conditions
    except CannotTrace:
        raise
    except Exception as error:  # whatever a user's forward raises when it meets symbolic values
        raise CannotTrace(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
    found.update("", reads, ())
    return Trace(graph, found.reads, tracer.kind, tracer.kind_asked, tuple(found.through), found.asked())


def _inputs(module: nn.Module) -> list[tuple[str, ...]]:
    """The inputs to trace its forward for, () meaning all: those alone that have to be given, if others may be left
    out, and all."""
    try:
        _, *parameters = inspect.signature(type(module).forward).parameters.values()
    except (AttributeError, TypeError, ValueError):  # it is compiled, or no method
        return [()]
    required = tuple(p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
    constant = all(p.default is p.empty or is_constant(p.default) for p in parameters)
    return [required, ()] if constant and 0 < len(required) < len(parameters) else [()]


def _attempts(module: nn.Module, effects: Mapping[str, Effect | None]) -> Iterator[Trace | CannotTrace]:
    """Its traces in its mode, and why there are no others."""
    for required in _inputs(module):
        for kind in (Tensor, list):
            tracer = _Tracer(kind, required, effects)
            try:
                yield _trace(module, tracer)
            except AsksEffect:
                raise
            except CannotTrace as refusal:
                yield refusal
            if not tracer.kind_asked:
                break


def traces(module: nn.Module, effects: Mapping[str, Effect | None]) -> list[Trace]:
    """The traces of `module`, given the `effects` of modules in it by their paths: for inputs that are tensors and, if
    its forward asks for their type, lists of them; without those that may be left out, and with them; in both modes if
    it asks for `self.training`. Raises `CannotTrace` if there is none, `AsksEffect` if it must know one more effect."""
    attempts, training = [], module.training
    try:
        for mode in (training, not training):
            module.training = mode
            attempts += _attempts(module, effects)
            found = [each for each in attempts if isinstance(each, Trace)]
            if found and not any("training" in each.reads.get("", ()) for each in found):
                break
    finally:
        module.training = training
    if not found:
        raise attempts[0]
    return found
