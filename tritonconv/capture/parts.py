"""How many parts `chunk`, `split` and the like give, for forwards that iterate over them.

That depends on a size: of channels, which a convolution sets, or of the forward's input. So what is found holds under
conditions, which are noted on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, fx, nn

from ..blocks.modules import ACTIVATION_MODULES, POOLS, intercepted
from .nodes import ACTIVATION_CALLS, POOL_CALLS

_NAMES = {torch.chunk: "chunk", torch.split: "split", torch.tensor_split: "tensor_split", torch.unbind: "unbind"}
_LISTS = {"split": 0, "tensor_split": 1}  # those that take a list, and how many more parts than entries it means
_CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d
_KEEP = {nn.Identity, nn.Dropout, nn.BatchNorm1d, nn.BatchNorm2d, *ACTIVATION_MODULES}


@dataclass(frozen=True)
class Sizes:
    """What is known of a value made of one tensor: if that has `rank` dimensions, so has this, and as many images and
    as many channels, or `channels`. Of the same sizes altogether, if rank is None."""

    channels: int | None = None
    rank: int | None = None

    def then(self, made: Sizes) -> Sizes:
        """That of what is `made` of the value."""
        return Sizes(made.channels or self.channels, made.rank or self.rank)


@dataclass
class Conditions:
    """reads: attributes and their values, by paths of modules. through: paths of those that do what their forwards do.
    inputs: what must be true of the input."""

    reads: dict[str, dict[str, object]] = field(default_factory=dict)
    through: dict[str, None] = field(default_factory=dict)
    inputs: dict[tuple, None] = field(default_factory=dict)  # functions, and their arguments before it

    def update(self, path: str, reads: dict[str, dict[str, object]], through: tuple[str, ...]) -> None:
        """Those of the module at `path`, in which they go by the paths below it."""
        for inner, noted in reads.items():
            self.reads.setdefault(joined(path, inner), {}).update(noted)
        self.through.update((joined(path, inner), None) for inner in through)

    def asked(self) -> tuple[Callable[[Tensor], bool], ...]:
        return tuple(partial(*condition) for condition in self.inputs)


@dataclass(frozen=True)
class Effect:
    """The sizes of what a module makes of its input, and the conditions."""

    sizes: Sizes
    reads: dict[str, dict[str, object]] = field(default_factory=dict)
    through: tuple[str, ...] = ()


Effects = Callable[[str], Effect | None]  # of modules, by their paths; None where it is not known


def effect_of(module: nn.Module) -> Effect | None:
    """That of a module of torch's."""
    kind, alone = type(module), ("",)
    if intercepted(module):
        return None
    if kind in _CONVOLUTIONS:
        sizes = Sizes(module.out_channels, _rank(kind.__name__))
        return Effect(sizes, {"": {"out_channels": sizes.channels}}, alone)
    if kind in POOLS:
        return Effect(Sizes(rank=_rank(kind.__name__)), through=alone)
    return Effect(Sizes(), through=alone) if kind in _KEEP else None


def sizes_of(node: fx.Node, effects: Effects, conditions: Conditions) -> Sizes | None:
    """Those of a value in a forward of one input; None if they are not known."""
    if node.op == "placeholder":
        return Sizes()
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        effect = effects(node.target)
        if effect is None or len(node.args) > 1 or node.kwargs:
            return None
        conditions.update(node.target, effect.reads, effect.through)
        made = effect.sizes
    elif node.target in POOL_CALLS:
        made = Sizes(rank=_rank(POOL_CALLS[node.target]))
    elif node.target in ACTIVATION_CALLS:
        made = Sizes()
    else:
        return None
    before = sizes_of(node.args[0], effects, conditions)
    return before and before.then(made)


def parts_of(node: fx.Node, effects: Effects, conditions: Conditions) -> int | None:
    """How many parts `node` gives, if it calls such a function and that can be said."""
    name = node.target if node.op == "call_method" else _NAMES.get(node.target)
    if name not in _NAMES.values() or not node.args:
        return None
    given = [*node.args[1:], *(value for key, value in node.kwargs.items() if key != "dim")]
    argument = 1 if name == "unbind" else given.pop(0)
    dim = node.kwargs["dim"] if "dim" in node.kwargs else (*given, 0)[0]
    if isinstance(argument, (list, tuple)):
        return len(argument) + _LISTS[name] if name in _LISTS else None
    if type(argument) is not int or argument < 1 or type(dim) is not int:
        return None
    if name == "tensor_split":
        return argument
    sizes = len(node.graph.find_nodes(op="placeholder")) == 1 and sizes_of(node.args[0], effects, conditions)
    if not sizes:
        return None
    if sizes.rank is not None:
        conditions.inputs[_has, sizes.rank] = None
        dim = dim + sizes.rank if dim < 0 else dim
        if dim == 1 and sizes.channels is not None:
            return _parts(name, argument, sizes.channels)
        if dim not in (0, 1):
            return None
    if name != "chunk":  # as many as are asked for, mostly
        return None
    conditions.inputs[_gives, argument, dim] = None
    return argument


def _has(rank: int, x: Tensor) -> bool:
    return x.dim() == rank


def _gives(chunks: int, dim: int, x: Tensor) -> bool:
    return -x.dim() <= dim < x.dim() and _parts("chunk", chunks, x.shape[dim]) == chunks


def _parts(name: str, argument: int, size: int) -> int:
    """How many `name` gives of so many elements."""
    if name == "chunk":
        argument = max(-(-size // argument), 1)  # in each
    return -(-size // argument)


def _rank(name: str) -> int:
    """The dimensions of a batch, by the name of what takes it."""
    return 3 if "1d" in name else 4


def joined(owner: str, name: str) -> str:
    """The path of what goes by `name` in the module at `owner`."""
    return f"{owner}.{name}" if owner and name else owner or name
