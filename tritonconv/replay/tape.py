"""Records one run of a patched module as a flat graph, while it runs as it always does.

The forwards of children that could be traced are written out; calls of torch's functions, and of modules whose forwards
could not be traced, stay in the graph as they are. A block becomes what it did: allocations, launches, and calls of
torch's operators.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .. import choice
from ..blocks.modules import LEAVES
from ..blocks.run import activated_block, activated_norm, averaged_convolution, conv_block, conv_call
from ..capture.trace import unpacked
from ..ops.interior import inside, is_inside, is_seen, seen, viewed
from ..patching.interior import opens
from .graph import INTO, RecordedGraph
from .recorded import views_of
from .upsampling import MODULES, nearest

_BLOCKS = {
    *(conv_block, conv_call, activated_block, activated_norm, averaged_convolution),
    *(choice.faster, *LEAVES.values()),
}
# What mostly gives its input itself, or in another shape: written out, so that launches on both sides come together.
_SHAPING = {
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(F.dropout, torch.flatten, torch.squeeze, torch.unsqueeze),
    *("flatten", "squeeze", "unsqueeze", "view", "reshape"),
}
_MAY_TAKE_LISTS = {torch.cat, torch.concat, torch.stack, operator.getitem}  # of what is given they change nothing


class Forward(Protocol):
    """See `swap.Forward`."""

    run: Callable
    graph: fx.Graph
    fuses: bool
    parts: Mapping  # by path, what each `reads`

    def holds(self, module: nn.Module, inputs: tuple) -> bool: ...


class Tape(RecordedGraph):
    """The graph of a call.

    inlined: modules whose forwards were written out, with what they read. parts: those that blocks are made of. called:
    those that are called. gradients: whether it is a call with gradients.
    """

    gradients = False

    def __init__(self, root: nn.Module, forwards: Mapping[str, tuple[Forward, ...]]):
        super().__init__()
        self.root, self.forwards = root, forwards
        self.inlined: dict[nn.Module, dict[str, object]] = {}
        self.parts: set[nn.Module] = set()
        self.called: set[nn.Module] = set()

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
        plan = vars(self.root).get("_tritonconv")
        if plan is None or not plan.interior or not opens(self.root, inputs):
            return self._written_out(self.root, "", forward, nodes, inputs)
        with inside():
            output, result = self._written_out(self.root, "", forward, nodes, inputs)
        return (output, result) if is_seen(result) else self._block(lambda: seen(result))

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
        (args, kwargs), op, target = values, node.op, node.target
        if target is viewed:  # which asks where it is
            op, target = "call_method", "reshape" if is_inside() else "view"
        if op == "get_attr":
            return self._attribute(module, path, target)
        if op == "call_function":
            if target in _BLOCKS or (target in _SHAPING and _of_tensors(stand_ins)):
                return self._block(lambda: target(*args, **kwargs))
            if target is F.interpolate and _of_tensors(stand_ins) and (run := nearest(*args, **kwargs)) is not None:
                return self._block(run)
            run = functools.partial(target, *args, **kwargs)
            return self._call(op, target, stand_ins, run, not is_torchs(target))
        if op == "call_method":
            receiver, *others = args
            function = getattr(receiver, target)
            if isinstance(receiver, Tensor) and target in _SHAPING and _of_tensors(stand_ins):
                return self._block(lambda: function(*others, **kwargs))
            ours = not isinstance(receiver, Tensor) or target.endswith("_")
            return self._call(op, target, stand_ins, lambda: function(*others, **kwargs), ours)
        child = module.get_submodule(target)
        if _is_swapped(child) or (type(child) in _SHAPING and "forward" not in vars(child)):
            self.parts.add(child)
            return self._block(lambda: child(*args, **kwargs))
        if type(child) in MODULES and "forward" not in vars(child):
            size, factor, mode = child.size, child.scale_factor, child.mode
            if (run := nearest(*args, **kwargs, size=size, scale_factor=factor, mode=mode)) is not None:
                self.parts.add(child)
                return self._block(run)
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
        return forwards if given in (expected, forwards) and ours and "forward" not in vars(child) else ()

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
        if target in INTO and self._is_new(value, stand_ins):
            return self._call_into(INTO[target], *stand_ins, value), value
        node = self.graph.create_node(op, target, *stand_ins)
        self._note(node, value, lasting)
        return node, value

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
    if target is unpacked:  # Python's, written as a function
        return True
    package = (getattr(target, "__module__", None) or "torch").partition(".")[0]
    return package in ("torch", "_operator", "math", "builtins")


def _is_swapped(module: nn.Module) -> bool:
    original = vars(type(module)).get("_original")
    return original in LEAVES and "_tritonconv" in vars(module) and "forward" not in vars(module)


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name
