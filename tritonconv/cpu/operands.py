"""What an interchanged product reads: its two loads, with their masks, and the rows that these leave."""

from __future__ import annotations

from . import ir
from .access import LINE
from .code import Iv
from .dot import UNROLL, Product
from .elements import quotient
from .masks import conjunction, conjuncts
from .parse import constant
from .plan import SHAPE
from .shapes import source_index
from .values import SIZE, TRUE, Aff, Val, const, index, shift

_EVICTION = {"first": 2, "last": 3}
_ROWS_AHEAD = 32  # that memory is asked for, of a matrix whose rows lie far apart


def evicted(load: ir.Op, when: str) -> bool:
    """Whether it was given this `eviction_policy`, "first" or "last"; before Triton 3.9 it is a number."""
    return load.int("evict", 0) == _EVICTION[when] or f"evict_{when}" in load.attrs.get("cachePolicy", "")


def through(value: ir.Value) -> ir.Op | None:
    """The load that an operand comes from, looking through transpositions."""
    while value.op and value.op.name in ("tt.trans", "tt.broadcast", "tt.expand_dims"):
        value = value.op.operands[0]
    return value.op


class Alive:
    """Which rows of a panel take part at all: the left operand's row masks that do not change inside the loop."""

    def __init__(self, product: Product):
        self.e, self.code = product.e, product.low.code
        self.leaves: set = set()
        self.rows: list[Val] = []
        load = through(product.op.operands[0])
        if len(load.operands) < 2 or not _zero(load):
            return
        for row in product.at_rows:
            with self.code.probe(product.k) as kk:
                load, idx = index_through(product.op.operands[0], (row, index(kk)))
                leaves = [(v, i) for v, i in conjuncts(load.operands[1], idx) if not _varies(v, load.block)]
                leaves = [(v, i) for v, i in leaves if self.e.at(v, i).depth < kk.depth]
            self.leaves |= {v for v, _ in leaves}
            if leaves:
                self.rows.append(conjunction(self.e, leaves))

    def _fold(self, how: str) -> str:
        result = self.rows[0]
        for row in self.rows[1:]:
            result = self.e.binary(f"{how} {{}}", result, row)
        return result.ssa

    def all(self) -> str:
        return self._fold("and")

    def some(self) -> str:
        return self._fold("or")


def _varies(value: ir.Value, body: ir.Block) -> bool:
    """Whether a value depends on what the loop with this body carries."""
    if value.op is None or value.op.block is not body:
        return value in body.args
    return value.op.name == "tt.load" or any(_varies(v, body) for v in value.op.operands)


class Operands:
    """The two loads of an interchanged product. Masks on the reduction index alone become the inner loop's bound, if
    both factors have the same: zero times what is not finite would count.

    `any`: a condition (i1) without which the panel has no row to compute. `reduction`: rows of a packed right operand
    that are read before what lies behind them, 0 if that is not known.
    """

    def __init__(self, product: Product, any: str | None = None, reduction: int = 0):
        self.product, self.e, self.any, self.reduction = product, product.e, any, reduction
        self.left, self.right = product.op.operands[:2]
        self.passes = evicted(through(self.right), "first")  # from memory, once
        self.dropped: set = set()
        self.masks: dict[tuple, Val] = {}  # of a row, the same for every kk

    def end(self) -> str | None:
        """The inner loop's runtime bound, if masks give one."""
        e, product = self.e, self.product
        limits: list[dict[Val, None]] = []
        masks: set[ir.Value] = set()
        for value in (self.left, self.right):
            with product.low.code.probe(product.k) as kk:
                place = (product.at_rows[0], index(kk)) if value is self.left else (index(kk), product.at_columns[0])
                load, idx = index_through(value, place)
                if len(load.operands) < 2 or not _zero(load):
                    return None
                found = [(leaf, self._limit(leaf, at, kk)) for leaf, at in conjuncts(load.operands[1], idx)]
            masks |= {leaf for leaf, bound in found if bound is not None}
            limits.append(dict.fromkeys(bound for _, bound in found if bound is not None))
        if not limits[0] or limits[0] != limits[1]:
            return None
        self.dropped = masks
        end = const("i64", product.k)
        for bound in limits[0]:
            end = e.apply("llvm.smin", end, e.cast(bound, "i64"))
        return e.scalar(end)[0]

    def _limit(self, leaf: ir.Value, at, probe: Iv) -> Val | None:
        """n such that the comparison `leaf` holds exactly for kk < n, if it depends on kk alone."""
        e = self.e
        if not leaf.op or leaf.op.name != "arith.cmpi" or leaf.op.int("predicate") != 2:
            return None
        if not any(isinstance(i, Aff) and i.ivs and i.ivs[0][0] is probe for i in at):
            return None
        x, y = (e.at(v, at) for v in leaf.op.operands)
        if not (isinstance(x, Aff) and isinstance(y, Aff)):
            return None
        room = e.add(y, x, -1)
        bound = room._replace(ivs=tuple(p for p in room.ivs if p[0] is not probe))
        return bound if dict(room.ivs).get(probe) == -1 and not room.step and bound.depth < probe.depth else None

    def a(self, idx) -> Val:
        return self._load(self.left, idx)

    def b(self, idx) -> Val:
        if self.passes:
            self._ask(*idx)
        return self._load(self.right, idx)

    def _ask(self, *idx) -> None:
        """Asks for what is not read yet: some rows ahead, or, where all rows of the left operand take several passes,
        in each of these for a share of what lies behind the right one and is read after it. The first pass would wait
        for memory, and the others, which find all in the caches, would leave memory idle."""
        e, product, (*before, kk, column) = self.e, self.product, idx
        row, passes = shift(kk, _ROWS_AHEAD), -(-product.m // product.rows)
        if passes > 1 and self.reduction:
            if kk.const % min(passes, UNROLL) or column.const * SIZE[product.elem] % LINE:
                return
            at = e.add(e.mul(quotient(e, product.at_rows[0], product.rows), const("index", product.k)), kk)
            row = e.add(quotient(e, at, passes), const("index", self.reduction))
        load, ahead = index_through(self.right, (*before, row, column))
        e.prefetch(load, ahead, cache=2)

    def _load(self, value: ir.Value, idx) -> Val:
        e = self.e
        load, idx = index_through(value, idx)
        mask: Val = TRUE
        if len(load.operands) > 1:
            leaves = tuple((v, i) for v, i in conjuncts(load.operands[1], idx) if v not in self.dropped)
            mask = self.masks.get(leaves)
            if mask is None:
                mask = self.masks[leaves] = conjunction(e, leaves)
        return e.read(load, idx, mask)


def _zero(load: ir.Op) -> bool:
    """Whether what the mask leaves out reads as zero."""
    if len(load.operands) < 3:
        return True
    value = load.operands[2]
    while value.op and value.op.name in SHAPE:
        value = value.op.operands[0]
    return bool(value.op) and value.op.name == "arith.constant" and constant(value.op) == 0


def index_through(value: ir.Value, idx):
    while value.op.name != "tt.load":
        idx = source_index(value.op, idx)
        value = value.op.operands[0]
    return value.op, idx
