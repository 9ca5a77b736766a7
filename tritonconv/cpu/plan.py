"""Decides which tensors are kept in memory and which are recomputed where they are used.

A *root* is an operation that runs a loop nest (store, reduce, dot, a value kept in a buffer …); stores that share a
nest (`siblings.py`) are one root, the last of them. An expression that ends in one root is computed inside that root's
nest. One that ends in several, or inside a loop body below it, or that a broadcast would repeat, is kept in scratch
memory, unless it costs next to nothing (integers, a sum of what is at hand, a load whose address does). What is kept is
written by the first nest that asks for each of its elements, if there is one, else by a nest of its own.
"""

from __future__ import annotations

import math

from .elements import PURE
from .ir import Block, Op, Value, walk
from .provenance import Provenance
from .siblings import siblings

SHAPE = {"tt.splat", "tt.unsplat", "tt.broadcast", "tt.expand_dims", "tt.trans", "tt.reshape", "tt.join", "tt.cat"}
WRITES = {"tt.store", "tt.atomic_rmw", "tt.atomic_cas", "tt.print", "tt.assert", "tt.call"}
_COSTLY_INTEGERS = {"tt.mulhiui"}
# Arithmetic that is done sooner than a vector is written and read again; at most so many operations of it.
_LIGHT = {"arith.addf", "arith.subf", "arith.mulf", "arith.negf", "arith.select", "arith.extf"}
_LIGHT_OPERATIONS = 2
# What an address is made of that may be computed again in every nest.
_CHEAP = SHAPE | {"arith.addi", "arith.muli", "arith.extsi", "arith.constant", "tt.addptr", "tt.make_range"}


def writes(op: Op) -> bool:
    return any(o.name in WRITES for o in walk(op))


class Plan:
    def __init__(self, function: Op, disjoint: bool):
        self.provenance = Provenance(function) if disjoint else None  # pointers of two arguments share no memory
        self.kept: set[Value] = set()  # pure values to be computed once, into a buffer
        self.fused: set[Op] = set()  # loads performed inside the nest that uses them
        self.recorded: dict[Value, Op] = {}  # kept values, and the root whose nest writes them
        self.roots: dict[Value, set] = {}
        self.nests: dict[Op, tuple[Op, ...]] = {}  # the last store of a nest → all of them
        self.last: dict[Op, Op] = {}  # a store → the last of its nest
        for op in walk(function):
            for region in op.regions:
                for block in region:
                    self._block(block)

    def _block(self, block: Block):
        for stores in siblings(block) if self.provenance else ():
            self.nests[stores[-1]] = stores
            self.last.update(dict.fromkeys(stores, stores[-1]))
        place = {op: i for i, op in enumerate(block.ops)}
        barriers = [i for i, op in enumerate(block.ops) if writes(op)]
        for op in reversed(block.ops):
            if len(op.results) != 1 or not op.result.type.rank or not (op.name in PURE or op.name == "tt.load"):
                continue
            value = op.result
            roots = self.roots[value] = self._roots_of(value, block)
            if op.name == "tt.load":
                if self._fusable(op, roots, place, barriers):
                    self.fused.add(op)
            elif op.name not in SHAPE and op.name != "arith.constant" and self._costly(op):
                repeated = any(_expands(user) for user in _through_shapes(value))
                again = len(roots) > 1 and (_weight(value) > _LIGHT_OPERATIONS or not all(map(self._again, roots)))
                if again or any(isinstance(r, tuple) for r in roots) or repeated:
                    self.kept.add(value)
                    if (recorder := self._recorder(value, roots, place, barriers)) is not None:
                        self.recorded[value] = recorder

    def _roots_of(self, value: Value, block: Block) -> set:
        roots = set()
        for user in value.users:
            if user.block is not block:  # used inside a nested region
                roots.add(("inside", _enclosing(user, block)))
            elif user.name in PURE and user.result.type.rank and user.result not in self.kept:
                roots |= self.roots.get(user.result, set())
            else:
                roots.add(self.last.get(user, user))
        return roots

    def epilogue(self, value: Value) -> Op | None:
        """The store that a statement's result goes into, element by element and nowhere else, before memory is
        written."""
        block = value.op.block
        roots = self._roots_of(value, block)
        if len(roots) != 1:
            return None
        (root,) = roots
        place = block.ops.index
        if isinstance(root, tuple) or root.name != "tt.store" or not _unmoved(value, root):
            return None
        return None if any(writes(op) for op in block.ops[place(value.op) + 1 : place(root)]) else root

    def _recorder(self, value: Value, roots: set, place: dict, barriers: list[int]) -> Op | None:
        """The first root, if its nest asks for every element of `value` where it lies, and so can write it."""
        if any(isinstance(root, tuple) for root in roots):
            return None
        first = min(map(self.nest, roots), key=place.get)
        if any(place[value.op] < b < place[first] for b in barriers):
            return None
        if first.name == "tt.reduce":
            shape = first.operands[0].type.shape
        elif len(first.results) == 1 and first.result in self.kept:
            shape = first.result.type.shape
        else:
            return None
        return first if shape == value.type.shape and _reaches(value, first) else None

    @staticmethod
    def _costly(op: Op) -> bool:
        return op.result.type.is_float or op.name in _COSTLY_INTEGERS

    def _fusable(self, load: Op, roots: set, place: dict, barriers: list[int]) -> bool:
        if len(roots) > 1 and not (_cheap(load.operands[0]) and all(map(self._again, roots))):
            return False
        return bool(roots) and all(self._readable(load, root, place, barriers) for root in roots)

    def nest(self, root: Op) -> Op:
        """The operation in whose nest a root is computed."""
        return self.recorded.get(root.result, root) if len(root.results) == 1 else root

    def _again(self, root: Op | tuple) -> bool:
        """Whether a root's nest reads each element that it is given once."""
        return not isinstance(root, tuple) and (
            root.name in ("tt.reduce", "tt.store") or len(root.results) == 1 and root.result in self.kept
        )

    def _readable(self, load: Op, root: Op | tuple, place: dict, barriers: list[int]) -> bool:
        """Whether the nest of `root` may read what `load` reads, no memory having been written since."""
        if isinstance(root, tuple):
            return False
        stores = self.nests.get(root, (self.nest(root),))
        if any(place[load] < b < place[stores[0]] for b in barriers):
            return False
        if len(stores) > 1:
            return all(self._apart(load.operands[0], store.operands[0]) for store in stores)
        if root.name == "tt.store":
            return same_place(load.operands[0], root.operands[0]) or self._apart(load.operands[0], root.operands[0])
        if root.name in ("tt.reduce", "tt.scan"):
            return len(load.operands) == 1 or load.result.type.elem in ("f32", "f64", "i32", "i64")
        return root.name not in WRITES and not root.regions

    def _apart(self, a: Value, b: Value) -> bool:
        if self.provenance is None:
            return False
        first, second = map(self.provenance.argument, (a, b))
        return None not in (first, second) and first is not second


def _unmoved(value: Value, root: Op) -> bool:
    """Whether a value reaches its root at unchanged indices, as the value stored."""
    return all(
        user is root
        and root.operands[1] is value
        or user.name in PURE
        and user.name not in SHAPE
        and _unmoved(user.result, root)
        for user in value.users
    )


def _reaches(value: Value, root: Op) -> bool:
    """Whether a value goes into its root at unchanged indices on some way."""
    return any(
        user is root or user.name in PURE and user.name not in SHAPE and _reaches(user.result, root)
        for user in value.users
        if user.block is root.block
    )


def _weight(value: Value) -> float:
    """How many operations a float is made with, of what is in memory or the same everywhere."""
    op = value.op
    if not value.type.is_float or op is None or op.name not in PURE or op.name in SHAPE | {"tt.load", "arith.constant"}:
        return 0
    return 1 + sum(map(_weight, op.operands)) if op.name in _LIGHT else math.inf


def _cheap(address: Value) -> bool:
    op = address.op
    return not address.type.rank or op is not None and op.name in _CHEAP and all(map(_cheap, op.operands))


def _through_shapes(value: Value):
    """The users of a value, looking through operations that only rearrange it."""
    for user in value.users:
        yield user
        if user.name in SHAPE and not _expands(user):
            yield from _through_shapes(user.result)


def _expands(op: Op) -> bool:
    """Whether an element of the first operand may be asked for several times."""
    return op.name == "tt.gather" or op.name == "tt.broadcast" and op.result.type.numel > op.operands[0].type.numel


def _enclosing(op: Op, block: Block) -> Op:
    """The operation of `block` around `op`; `op` itself in a block that is reached by a jump."""
    around = op
    while around.block is not block:
        around = around.block.parent
        if around is None or around.name == "tt.func":
            return op
    return around


def same_place(a: Value, b: Value) -> bool:
    """Whether two pointer tensors differ only in the scalar pointer they start from."""
    if a is b:
        return True
    if a.type.rank == 0 and b.type.rank == 0:
        return a.type.elem == "ptr"
    if not a.op or not b.op or a.op.name != b.op.name or a.op.attrs != b.op.attrs or a.type.shape != b.type.shape:
        return False
    return all(
        x is y or (x.type.elem == "ptr" and same_place(x, y)) for x, y in zip(a.op.operands, b.op.operands, strict=True)
    )
