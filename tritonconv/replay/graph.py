"""The graph of what has run: what stands in it for each tensor, operator and launch that a block came to."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from types import NoneType

import torch
from torch import Tensor, fx
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from .. import choice
from ..cpu import engine
from ..cpu.runtime import Kernel
from .recorded import Launched, Storage, View, constant_of, launched, views_of

_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
    _aten.empty_like.default,
}
_COPIES = {_aten.clone.default, _aten.contiguous.default}  # the latter as it is in inference mode
_ALIASES = {_aten.detach.default, _aten.alias.default}
# What gives new memory, and what writes the same into memory that it is given.
INTO = {
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
_PLAIN = bool, int, float, str, NoneType, slice, torch.Size, torch.dtype, torch.device, torch.memory_format


class RecordedGraph:
    """The `graph`, of whose nodes `recorded` says what they stand for.

    constants: tensors that are the same at every call. refusal: why the graph cannot stand for such a call.
    """

    def __init__(self):
        self.graph = fx.Graph()
        self.constants: list[Tensor] = []
        self.refusal = ""
        self._nodes = WeakIdKeyDictionary()
        self._storages: dict[int, Storage] = {}
        self._by_view: dict[View, fx.Node] = {}

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
        if function in _COPIES and self._is_new(value, (args, {})):
            self._note(self.graph.call_function(_aten.copy_.default, (self._allocation(value), *args)), value)
            return
        if function in INTO and self._is_new(value, (args, kwargs)):
            self._call_into(INTO[function], args, kwargs, value)
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
