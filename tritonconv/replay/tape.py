"""Records one run of a patched module as a flat graph, while it runs as it always does.

The forwards of children that could be traced are written out; calls of torch's functions, and of modules whose forwards
could not be traced, stay in the graph as they are. A block becomes what it did: allocations, launches, and calls of
torch's operators.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from .. import choice
from ..blocks.modules import LEAVES
from ..blocks.run import activated_block, activated_norm, averaged_convolution, conv_block, conv_call
from ..cpu import engine
from ..cpu.runtime import Kernel
from .recorded import Launched, Storage, View, constant_of, launched, views_of

_BLOCKS = {
    *(conv_block, conv_call, activated_block, activated_norm, averaged_convolution),
    *(choice.faster, *LEAVES.values()),
}
_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
    _aten.empty_like.default,
}
_ALIASES = {_aten.detach.default, _aten.alias.default}
# What gives new memory, and what writes the same into memory that it is given.
_INTO = {
    torch.cat: torch.cat,
    torch.concat: torch.cat,
    torch.add: torch.add,
    operator.add: torch.add,
    _aten.cat.default: _aten.cat.out,
    _aten.add.Tensor: _aten.add.out,
    _aten.avg_pool2d.default: _aten.avg_pool2d.out,
    _aten.max_pool2d_with_indices.default: _aten.max_pool2d_with_indices.out,
}
_OUTPUTS = {_aten.max_pool2d_with_indices.out: ("out", "indices")}
# What mostly gives its input itself, or in another shape: written out, so that launches on both sides come together.
_SHAPING = {
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(F.dropout, torch.flatten, torch.squeeze, torch.unsqueeze),
    *("flatten", "squeeze", "unsqueeze", "view", "reshape"),
}
_PLAIN = bool, int, float, str, NoneType, slice, torch.Size, torch.dtype, torch.device, torch.memory_format
_MAY_TAKE_LISTS = {torch.cat, torch.concat, torch.stack, operator.getitem}  # of what is given they change nothing


class Forward(Protocol):
    """See `swap.Forward`."""

    graph: fx.Graph
    fuses: bool
    reads: dict[str, object]

    def holds(self, module: nn.Module, inputs: tuple) -> bool: ...


class Tape:
    """The recorded `graph`, of whose nodes `recorded` says what they stand for.

    inlined: modules whose forwards were written out, with what they read. parts: those that blocks are made of. called:
    those that are called. constants: tensors that are the same at every call. refusal: why the graph cannot stand for
    such a call. gradients: whether it is one with gradients.
    """

    gradients = False

    def __init__(self, root: nn.Module, forwards: Mapping[str, tuple[Forward, ...]]):
        self.root, self.forwards = root, forwards
        self.graph = fx.Graph()
        self.inlined: dict[nn.Module, dict[str, object]] = {}
        self.parts: set[nn.Module] = set()
        self.called: set[nn.Module] = set()
        self.constants: list[Tensor] = []
        self.refusal = ""
        self._nodes = WeakIdKeyDictionary()
        self._storages: dict[int, Storage] = {}
        self._by_view: dict[View, fx.Node] = {}

    def record(self, forward: Forward, inputs: tuple[Tensor, ...]) -> object:
        """Runs `forward` on the inputs."""
        output, result = self._run(forward, inputs)
        node = self.graph.output(output)
        self._note(node, result, lasting=True)
        return result

    def _run(self, forward: Forward, inputs: tuple[Tensor, ...]) -> tuple[object, object]:
        """What stands for the output of `forward`, and its value."""
        nodes = []
        for number, x in enumerate(inputs):
            if self.storage_of(x) is not None:
                self.refusal = "inputs share memory"
            nodes.append(self.graph.placeholder(f"input_{number}"))
            self._note(nodes[-1], x)
        return self._written_out(self.root, "", forward, nodes, inputs)

    def _written_out(self, module: nn.Module, path: str, forward: Forward, nodes, values) -> tuple[object, object]:
        """The output of `forward` on these: what stands for it in the graph, and its value."""
        for inner, part in forward.parts.items():
            inner = module.get_submodule(inner)
            self.inlined[inner] = self.inlined.get(inner, {}) | part.reads
        given = iter(zip(nodes, values, strict=True))
        held: dict[fx.Node, tuple] = {}
        last = {used: node for node in forward.graph.nodes for used in node.all_input_nodes}
        for node in forward.graph.nodes:
            if node.op == "placeholder":
                held[node] = next(given)
                continue
            stand_ins, values = ((_filled(node.args, held, at), _filled(node.kwargs, held, at)) for at in (0, 1))
            if node.op == "output":
                return stand_ins[0][0], values[0][0]
            held[node] = self._step(module, path, node, stand_ins, values)
            for used in node.all_input_nodes:
                if last[used] is node:
                    del held[used]
        raise AssertionError("a graph ends with its output")

    def _step(self, module: nn.Module, path: str, node: fx.Node, stand_ins, values) -> tuple[object, object]:
        (args, kwargs), target = values, node.target
        if node.op == "get_attr":
            return self._attribute(module, path, target)
        if node.op == "call_function":
            if target in _BLOCKS or (target in _SHAPING and _of_tensors(stand_ins)):
                return self._block(lambda: target(*args, **kwargs))
            run = functools.partial(target, *args, **kwargs)
            return self._call(node.op, target, stand_ins, run, not is_torchs(target))
        if node.op == "call_method":
            receiver, *others = args
            function = getattr(receiver, target)
            if isinstance(receiver, Tensor) and target in _SHAPING and _of_tensors(stand_ins):
                return self._block(lambda: function(*others, **kwargs))
            ours = not isinstance(receiver, Tensor) or target.endswith("_")
            return self._call(node.op, target, stand_ins, lambda: function(*others, **kwargs), ours)
        child = module.get_submodule(target)
        if _is_swapped(child) or (type(child) in _SHAPING and "forward" not in vars(child)):
            self.parts.add(child)
            return self._block(lambda: child(*args, **kwargs))
        candidates, inputs = self._forwards_of(child, _join(path, target)), (*args, *kwargs.values())
        forward = next((each for each in candidates if each.holds(child, inputs)), None)
        if forward is not None:
            ordered = _ordered(forward, *stand_ins), _ordered(forward, args, kwargs)
            if _takes(forward, ordered[0]):
                return self._written_out(child, _join(path, target), forward, *ordered)
        return self._called(child, _join(path, target), stand_ins, lambda: child(*args, **kwargs))

    def _called(self, child: nn.Module, path: str, stand_ins, run: Callable[[], object]) -> tuple[object, object]:
        """A child that is not written out."""
        self.called.add(child)
        return self._call("call_module", path, stand_ins, run, not is_torchs(type(child)))

    def _forwards_of(self, child: nn.Module, path: str) -> tuple[Forward, ...]:
        """The forwards that `child` still runs, or that compute just what its own computes."""
        forwards, plan = self.forwards.get(path, ()), vars(child).get("_tritonconv")
        expected = forwards if any(forward.fuses for forward in forwards) else ()
        given = () if plan is None else plan.forwards
        ours = plan is None or plan.memory_format is torch.preserve_format
        return forwards if given == expected and ours and "forward" not in vars(child) else ()

    def _attribute(self, module: nn.Module, path: str, target: str) -> tuple[fx.Node, object]:
        owner, _, name = target.rpartition(".")
        owner = module.get_submodule(owner)
        value, path = getattr(owner, name), _join(path, target)
        if isinstance(value, nn.Module):
            self.parts.add(value)
            if "forward" in vars(value):
                self.refusal = f"{target} has a forward of its own"
            return self.graph.create_node("get_attr", path), value
        if name not in owner._parameters and name not in owner._buffers:  # which are all that is guarded
            self.refusal = f"{target} is neither parameter nor buffer"
        self.inlined.setdefault(owner, {})
        return self._named(path, value), value

    def _named(self, path: str, value: Tensor) -> fx.Node:
        """What stands for a parameter or a buffer."""
        node = self.graph.create_node("get_attr", path)
        self._note(node, value)
        return node

    def _call(self, op: str, target, stand_ins, run: Callable[[], object], lasting: bool) -> tuple[object, object]:
        value = run()
        if target in _INTO and self._is_new(value, stand_ins):
            return self._call_into(_INTO[target], *stand_ins, value), value
        node = self.graph.create_node(op, target, *stand_ins)
        self._note(node, value, lasting)
        return node, value

    def _is_new(self, value: object, stand_ins) -> bool:
        """Whether a call, first of all of tensors, gave tensors in memory of their own."""
        (args, kwargs), results = stand_ins, value if isinstance(value, tuple) else (value,)
        if not args or "out" in kwargs or not all(isinstance(result, Tensor) for result in results):
            return False
        first = args[0] if isinstance(args[0], (list, tuple)) else args[:1]
        given = all(isinstance(each, fx.Node) and views_of(each) for each in first)
        return given and all(self.storage_of(result) is None for result in results)

    def _call_into(self, function, args, kwargs, value: object) -> object:
        """Records that `function` writes `value`, and what stands for that."""
        given = tuple(map(self._allocation, value if isinstance(value, tuple) else (value,)))
        outputs = dict(zip(_OUTPUTS.get(function, ("out",)), given, strict=True))
        node = self.graph.call_function(function, tuple(args), {**kwargs, **outputs})
        self._note(node, value)
        return given if isinstance(value, tuple) else given[0]

    def _allocation(self, tensor: Tensor) -> fx.Node:
        node = self.graph.call_function(
            torch.empty_strided, (tuple(tensor.shape), tensor.stride()), {"dtype": tensor.dtype}
        )
        self._note(node, tensor, made=True)
        return node

    def _block(self, run: Callable[[], object]) -> tuple[object, object]:
        """Runs a block; what stands for its value, which is a tensor or a tuple of some."""
        mine = threading.get_ident()
        engine.watchers[mine] = self._launched
        try:
            with choice.recording(), _Operators(self._operator):
                value = run()
        finally:
            del engine.watchers[mine]
        return self._stands_for(value), value

    def _stands_for(self, value: object) -> object:
        """What stands for a block's value."""
        if not all(map(self._is_known, tree_leaves(value))):
            self.refusal = "a block gives what it did not make"
            return None
        return tree_map_only(Tensor, self._found, value)

    def _is_known(self, leaf: object) -> bool:
        return isinstance(leaf, Tensor) and self._found(leaf) is not None

    def _operator(self, function, args: tuple, kwargs: dict, value: object) -> None:
        if function in _ALLOCATIONS:
            self._allocation(value)
            return
        if function in _ALIASES:  # found by the memory that it is
            self._node_of(args[0])
            return
        args, kwargs = tree_map_only(Tensor, self._node_of, (args, kwargs))
        if function is _aten.clone.default and self._is_new(value, (args, {})):
            self._note(self.graph.call_function(_aten.copy_.default, (self._allocation(value), *args)), value)
            return
        if function in _INTO and self._is_new(value, (args, kwargs)):
            self._call_into(_INTO[function], args, kwargs, value)
            return
        node = self.graph.call_function(function, args, kwargs)
        self._note(node, value)
        if isinstance(value, (tuple, list)):
            for number, part in enumerate(value):
                self._note(self.graph.call_function(operator.getitem, (node, number)), part)
        elif not isinstance(value, Tensor):  # a number, which was looked at
            self.refusal = f"a block calls {function}"

    def _node_of(self, tensor: Tensor) -> fx.Node:
        if (node := self._found(tensor)) is not None:
            return node
        if self.storage_of(tensor) is not None:
            self.refusal = "a view was made where nobody saw it"
        self.constants.append(tensor)
        constant = self.graph.call_function(constant_of, (len(self.constants) - 1,))
        self._note(constant, tensor)
        return constant

    def _found(self, tensor: Tensor) -> fx.Node | None:
        """What stands for the tensor, or for another that is the same part of memory: autograd hands on such."""
        node = self._nodes.get(tensor)
        if node is None and self.storage_of(tensor) is not None:
            node = self._by_view.get(self._view_of(tensor))
        return node

    def _launched(self, kernel: Kernel | None, launch, tensors) -> None:
        if kernel is None or launch.boxes:
            self.refusal = "a launch is checked"
            return
        given = [tensor for tensor in tensors if tensor is not None]
        node = self.graph.call_function(launched, tuple(filter(None, map(self._found, given))))
        operands = tuple(map(self._operand, given))
        dtypes = tuple(None if tensor is None else tensor.dtype for tensor in tensors)
        node.meta["launch"] = Launched(kernel, launch, dtypes, operands)
        node.meta["views"] = [operand for operand in operands if isinstance(operand, View)]

    def _operand(self, tensor: Tensor) -> View | Tensor:
        if (storage := self.storage_of(tensor)) is not None:
            if storage.base is None:
                self.refusal = "a launch reads what is only in a tuple"
            return self._view_of(tensor)
        self.constants.append(tensor)
        return tensor

    def _note(self, node: fx.Node, value: object, lasting: bool = False, made: bool = False) -> None:
        leaves = tree_leaves(value)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not all(type(leaf) in (Tensor, Parameter, *_PLAIN) for leaf in leaves):
            self.refusal = f"{node.name} gives more than tensors and numbers"
            return
        if any(not t.is_cpu or t.layout is not torch.strided for t in tensors):
            self.refusal = f"{node.name} gives a tensor elsewhere than in the CPU's memory"
            return
        for tensor in tensors:
            if self.storage_of(tensor) is None:
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = Storage(tensor, made)
        node.meta["views"] = list(map(self._view_of, tensors))
        node.meta["lasting"] = lasting
        if isinstance(value, Tensor):
            self._nodes[value] = node
            (view,) = node.meta["views"]
            self._by_view.setdefault(view, node)
            if view.storage.base is None:
                view.storage.base, view.storage.start = node, view.offset

    def storage_of(self, tensor: Tensor) -> Storage | None:
        return self._storages.get(tensor.untyped_storage()._cdata)

    def _view_of(self, tensor: Tensor) -> View:
        offset = tensor.storage_offset() * tensor.itemsize
        return View(self.storage_of(tensor), offset, tensor.shape, tensor.stride(), tensor.dtype)


class _Operators(TorchDispatchMode):
    """Tells of torch's operators that have run."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it takes seconds, in which it is imported

    def __init__(self, tell: Callable[..., None]):
        super().__init__()
        self._tell = tell

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        self._tell(func, args, kwargs or {}, value)
        return value


def _filled(argument, held: dict[fx.Node, tuple], at: int):
    """`argument` of a node with what is held for the nodes in it."""
    if isinstance(argument, fx.Node):
        return held[argument][at]
    if isinstance(argument, tuple):
        parts = [_filled(part, held, at) for part in argument]
        return type(argument)(*parts) if hasattr(argument, "_fields") else tuple(parts)
    if isinstance(argument, list):
        return [_filled(part, held, at) for part in argument]
    if isinstance(argument, dict):
        return {name: _filled(part, held, at) for name, part in argument.items()}
    if isinstance(argument, slice):
        return slice(*(_filled(part, held, at) for part in (argument.start, argument.stop, argument.step)))
    return argument


def _of_tensors(stand_ins) -> bool:
    """Whether all that these arguments take from the graph are tensors: a number may be another at the next call."""
    nodes = (leaf for leaf in tree_leaves(stand_ins) if isinstance(leaf, fx.Node))
    return all(len(views_of(node)) == 1 for node in nodes)


def _ordered(forward: Forward, args, kwargs) -> list:
    """The arguments in the order of the forward's inputs."""
    names = [node.target for node in forward.graph.find_nodes(op="placeholder")]
    return [*args, *(kwargs[name] for name in names[len(args) :])]


def _takes(forward: Forward, stand_ins: list) -> bool:
    """Whether lists are given only where nothing can be done to them."""
    for placeholder, given in zip(forward.graph.find_nodes(op="placeholder"), stand_ins, strict=True):
        if not isinstance(given, fx.Node) and not all(user.target in _MAY_TAKE_LISTS for user in placeholder.users):
            return False
    return True


def is_torchs(target) -> bool:
    """Whether it is a function or a class of torch, or an operator of Python's: they keep nothing of what they see."""
    package = (getattr(target, "__module__", None) or "torch").partition(".")[0]
    return package in ("torch", "_operator", "math", "builtins")


def _is_swapped(module: nn.Module) -> bool:
    original = vars(type(module)).get("_original")
    return original in LEAVES and "_tritonconv" in vars(module) and "forward" not in vars(module)


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name
