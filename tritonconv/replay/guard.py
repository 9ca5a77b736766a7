"""Whether a module is as it was when it was recorded.

This runs at every call and looks at all modules and tensors there are. So it is one expression, compiled, in which each
thing to be looked at has a name: some twenty nanoseconds a condition. And nothing is looked at that cannot change what
a call gives.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..blocks.repeat import hooks_of
from ..capture.watch import is_constant
from ..launch.packing import Snapshot, packs
from .tape import Tape

Guard = Callable[[nn.Module], bool]

_PLAN = "_tritonconv"
_MANY = 8  # weights that are looked at together
_CONVOLUTION = "stride", "padding", "dilation", "groups", "padding_mode"
_NORM = "training", "track_running_stats", "momentum", "eps"
# The settings that a forward of torch's and the blocks in its stead read; of modules of other classes it may be any.
READ = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d), _CONVOLUTION),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _NORM),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d), (*_NORM, "num_features")),
    nn.GroupNorm: ("num_groups", "eps"),
    **dict.fromkeys((nn.ReLU, nn.SiLU, nn.Hardswish), ("inplace",)),
    nn.ReLU6: ("min_val", "max_val", "inplace"),
    **dict.fromkeys((nn.Linear, nn.Tanh, nn.Sigmoid, nn.Identity), ()),
}


def hooked(root: nn.Module) -> bool:
    """Whether somebody looks at what goes in or out of a module in `root`."""
    inner = (module for module in root.modules() if module is not root)
    return _has_any_global_hook() or any(map(any, map(hooks_of, inner)))


def guard_of(root: nn.Module, tape: Tape) -> Guard | None:
    """What tells whether all is as it is now; None if a change could go unnoticed."""
    settings = [(module, [_PLAN, *reads]) for module, reads in tape.inlined.items() if module is not root]
    settings += [(part, _settings_of(part)) for part in tape.parts]
    settings = [(vars(module), name) for module, names in settings for name in names if name in vars(module)]
    inner = list(dict.fromkeys((*tape.inlined, *tape.parts, *tape.called)))
    inner.remove(root)
    watched = [*tape.inlined, *tape.parts]
    dictionaries = [held for module in watched for held in (module._parameters, module._buffers) if held]
    entries = [(held, name, tensor) for held in dictionaries for name, tensor in held.items()]
    given = list({id(tensor): tensor for *_, tensor in entries if tensor is not None}.values())
    compared = [state[name] for state, name in settings if name != _PLAN]
    if any(t.is_inference() for t in given) or not all(map(_is_comparable, compared)):
        return None
    weights = [tensor for tensor in given if packs(tensor) and not (tape.gradients and tensor.requires_grad)]
    packed = {_memory(pack) for weight in weights for pack in packs(weight)}
    read = {_memory(constant) for constant in tape.constants} - packed
    if not read <= set(map(_memory, given)):  # a copy of something, which may grow old
        return None
    holds = _Conjunction()
    holds.add("not {}()", _has_any_global_hook)
    holds.add("root._modules is {}", root._modules)
    for name in tape.inlined[root]:  # not its plan, which holds this
        holds.add("root.__dict__[{}] == {}", name, _frozen(vars(root)[name]))
    for children in (module._modules for module in tape.inlined):
        holds.add("{} == {}", children, dict(children))
    for module in inner:
        holds.add("type({}) is {}", module, type(module))
        holds.add("len({}) == {}", vars(module), len(vars(module)))
        for hooks in _hooks_of(module, tape.gradients):
            holds.add("not {}", hooks)
    for state, name in settings:
        holds.add("{}[{}] is {}" if name == _PLAN else "{}[{}] == {}", state, name, _frozen(state[name]))
    for held in dictionaries:
        holds.add("len({}) == {}", held, len(held))
    for held, name, tensor in entries:
        holds.add("{}[{}] is {}", held, name, tensor)
    for tensor in (t for t in given if _memory(t) in read or packs(t)):
        holds.add("{0}.data_ptr() == {1} and {0}.nbytes == {2}", tensor, tensor.data_ptr(), tensor.nbytes)
        if tape.gradients:
            holds.add("{}.requires_grad is {}", tensor, tensor.requires_grad)
    snapshots = list(map(Snapshot.of, weights))
    for weight, snapshot in zip(weights, snapshots, strict=True):
        holds.add("{}._version == {}", weight, snapshot.version)
    probes = [snapshot.probe for snapshot in snapshots]
    if len(probes) < _MANY:
        for probe in probes:
            holds.add("{}.tobytes() == {}", probe, probe.tobytes())
    else:
        for words, places in _together(probes):
            holds.add("{}.take({}).tobytes() == {}", words, places, words.take(places).tobytes())
    return holds.compiled()


class _Conjunction:
    """Conditions, in the order in which they are asked. In the text of one, `{}` stands for what is given."""

    def __init__(self):
        self._text: list[str] = []
        self._names: dict[str, object] = {}

    def add(self, text: str, *given: object) -> None:
        self._text.append(text.format(*map(self._name, given)))

    def _name(self, value: object) -> str:
        if type(value) in (bool, int, str):
            return repr(value)
        name = f"a{id(value)}"
        self._names[name] = value  # and so it lives, and no other has its id
        return name

    def compiled(self) -> Guard:
        text = " and ".join(self._text)
        source = f"def holds(root):\n try: return {text}\n except KeyError: return False"  # an attribute is gone
        exec(compile(source, "<tritonconv guard>", "exec"), self._names)
        return self._names.pop("holds")  # else it would refer to itself


def _together(probes: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the probes look at, by the size of its numbers: memory from the first to the last of them, and where in it
    they are. Processors wait for all that one look reads at the same time, and for many looks one after the other."""
    by_dtype: dict[np.dtype, list[np.ndarray]] = defaultdict(list)
    for probe in probes:
        by_dtype[probe.dtype].append(probe.ctypes.data + np.arange(len(probe)) * probe.strides[0])
    for dtype, addresses in by_dtype.items():
        at = np.concatenate(addresses)
        first, size = int(at.min()), int(np.ptp(at)) + dtype.itemsize
        memory = (ctypes.c_char * size).from_address(first)
        yield np.ndarray(size // dtype.itemsize, dtype, memory), (at - first) // dtype.itemsize


def _settings_of(part: nn.Module) -> list[str]:
    kind = vars(type(part)).get("_original", type(part))
    return list(READ.get(kind, [name for name in vars(part) if not name.startswith("_")]))


def _hooks_of(module: nn.Module, gradients: bool) -> tuple[dict, ...]:
    """Those that may run: without gradients none of backward does."""
    return hooks_of(module) if gradients else (module._forward_hooks, module._forward_pre_hooks)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_comparable(value: object) -> bool:
    return is_constant(tuple(value) if isinstance(value, list) else value)


def _frozen(value: object) -> object:
    """The value; of a list what it is now."""
    return list(value) if isinstance(value, list) else value
