"""Whether a module is as it was when it was recorded.

This runs at every call and looks at all modules there are. So nothing here loops in Python over more than modules: what
is to be compared is gathered, and compared, by C code at some ten nanoseconds an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, is_, itemgetter

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..blocks.repeat import hooks_of
from ..capture.trace import is_constant
from ..launch.packing import Snapshot, packs
from .tape import Tape

_PLAN = "_tritonconv"
_nbytes, _version, _is_trained = Tensor.nbytes.__get__, attrgetter("_version"), Tensor.requires_grad.__get__


@dataclass(frozen=True, eq=False, slots=True)
class Guard:
    """own, settings: what gets the attributes that matter, of the root and of the modules in it (with theirs), and
    `values` those attributes. entries: the parameters and buffers in `dictionaries`. tensors: those that launches
    read, and where. trainable: those of them that may be `trained` or not, which only calls with gradients ask.
    weights: those of which launches read packs.
    """

    own: Callable[[dict], tuple]
    own_values: tuple
    settings: tuple[tuple[Callable[[dict], tuple], dict], ...]
    values: list[tuple]
    states: list[dict]
    lengths: list[int]
    modules: list[nn.Module]
    types: list[type]
    hooks: tuple[dict, ...]
    children: list[dict]
    were_children: list[dict]
    dictionaries: list[dict]
    counts: list[int]
    entries: list[Tensor | None]
    tensors: list[Tensor]
    trainable: list[Tensor]
    trained: list[bool]
    addresses: list[int]
    sizes: list[int]
    weights: list[Tensor]
    versions: list[int]
    snapshots: list[Snapshot]

    @staticmethod
    def hooked(root: nn.Module) -> bool:
        """Whether somebody looks at what goes in or out of a module in `root`."""
        inner = (module for module in root.modules() if module is not root)
        return _has_any_global_hook() or any(map(any, map(hooks_of, inner)))

    @staticmethod
    def of(root: nn.Module, tape: Tape) -> Guard | None:
        """As all is now; None if a change could go unnoticed."""
        settings = [(module, [_PLAN, *reads]) for module, reads in tape.inlined.items() if module is not root]
        settings += [(part, [name for name in vars(part) if not name.startswith("_")]) for part in tape.parts]
        settings = [(vars(module), [name for name in names if name in vars(module)]) for module, names in settings]
        own = ["_modules", *tape.inlined[root]]  # not its plan, which holds this
        held = [state[name] for state, names in settings for name in names if name != _PLAN]
        inner = list(dict.fromkeys((*tape.inlined, *tape.parts, *tape.called)))
        inner.remove(root)
        watched = [*tape.inlined, *tape.parts]
        dictionaries = [held for module in watched for held in (module._parameters, module._buffers) if held]
        entries = list(chain.from_iterable(map(dict.values, dictionaries)))
        given = list({id(tensor): tensor for tensor in entries if tensor is not None}.values())
        if any(t.is_inference() for t in given) or not all(map(_is_comparable, held)):
            return None
        weights = [tensor for tensor in given if packs(tensor) and not (tape.gradients and tensor.requires_grad)]
        packed = {_memory(pack) for weight in weights for pack in packs(weight)}
        read = {_memory(constant) for constant in tape.constants} - packed
        if not read <= set(map(_memory, given)):  # a copy of something, which may grow old
            return None
        tensors = [t for t in given if _memory(t) in read or packs(t)]
        trainable = tensors if tape.gradients else []
        children = [module._modules for module in tape.inlined]
        getters = [(_getter(names), state) for state, names in settings if names]
        return Guard(
            own=_getter(own),
            own_values=_getter(own)(vars(root)),
            settings=tuple(getters),
            values=[_frozen(get(state)) for get, state in getters],
            states=[module.__dict__ for module in inner],
            lengths=[len(module.__dict__) for module in inner],
            modules=inner,
            types=list(map(type, inner)),
            hooks=tuple(hooks for module in inner for hooks in hooks_of(module)),
            children=children,
            were_children=list(map(dict, children)),
            dictionaries=dictionaries,
            counts=list(map(len, dictionaries)),
            entries=entries,
            tensors=tensors,
            trainable=trainable,
            trained=list(map(_is_trained, trainable)),
            addresses=list(map(Tensor.data_ptr, tensors)),
            sizes=list(map(_nbytes, tensors)),
            weights=weights,
            versions=list(map(_version, weights)),
            snapshots=list(map(Snapshot.of, weights)),
        )

    def holds(self, root: nn.Module) -> bool:
        if self.children[0] is not root._modules or any(self.hooks) or _has_any_global_hook():
            return False
        try:
            return (
                self.own(root.__dict__) == self.own_values
                and [get(state) for get, state in self.settings] == self.values
                and [*map(len, self.states)] == self.lengths
                and [*map(type, self.modules)] == self.types
                and self.children == self.were_children
                and [*map(len, self.dictionaries)] == self.counts
                and all(map(is_, chain.from_iterable(map(dict.values, self.dictionaries)), self.entries))
                and [*map(_is_trained, self.trainable)] == self.trained
                and [*map(Tensor.data_ptr, self.tensors)] == self.addresses
                and [*map(_nbytes, self.tensors)] == self.sizes
                and [*map(_version, self.weights)] == self.versions
                and all([snapshot.probe.tobytes() == snapshot.seen for snapshot in self.snapshots])
            )
        except KeyError:  # an attribute is gone
            return False


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_comparable(value: object) -> bool:
    return is_constant(tuple(value) if isinstance(value, list) else value)


def _frozen(values: Iterable) -> tuple:
    """The values, lists among them as they are now."""
    return tuple([list(value) if isinstance(value, list) else value for value in values])


def _getter(names: list[str]) -> Callable[[dict], tuple]:
    return itemgetter(*names, names[0])  # of one name alone it would give no tuple
