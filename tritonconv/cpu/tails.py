"""The end of a reduction along a masked axis, where the mask holds nowhere: a row of 1025 numbers is a block of 2048.

All that is left there is one value, the same at every index: what a masked load gives instead, or what is computed from
that. Once combining it with the result has changed nothing, it will change nothing any more, and the rest of the axis
is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import ir
from .code import Iv
from .elements import Elements, Fixed, Index
from .masks import PREDICATES, conjuncts
from .shapes import REARRANGE, source_index
from .values import Aff, is_uniform

Leaf = tuple[ir.Value, Index]  # a comparison, and where
_ELEMENTWISE = ("arith.", "math.", "tt.clampf", "tt.fp_to_fp", "tt.precise_")


def over(e: Elements, operands: list[ir.Value], idx: Index, iv: Iv) -> str | None:
    """A condition (i1) for one turn of a loop over the axis: masks hold for no lane of it, nor of any later turn, and
    what is combined is the same in all of these. None if there is no such mask."""
    for leaf in dict.fromkeys(leaf for v in operands for leaf in _masks(e, v, idx)):
        if (end := _end(e, leaf, iv)) and all(_steady(e, v, idx, leaf) for v in operands):
            return end
    return None


def _masks(e: Elements, value: ir.Value, idx: Index) -> Iterator[Leaf]:
    """The comparisons that mask the loads and choices in an expression."""
    op = value.op
    if op is None or isinstance(e.bound.get(value), Fixed) or not _runs(idx):
        return
    if op.name in ("tt.load", "arith.select"):
        mask = op.operands[1 if op.name == "tt.load" else 0] if len(op.operands) > 1 else None
        if mask is not None and mask.type.rank:
            yield from conjuncts(mask, idx)
    elif op.name in REARRANGE:
        yield from _masks(e, op.operands[0], source_index(op, idx))
    elif op.name.startswith(_ELEMENTWISE):
        for v in op.operands:
            yield from _masks(e, v, idx)


def _runs(idx: Index) -> bool:
    """Whether a place is another one in other lanes."""
    return not all(is_uniform(i) for i in idx)


def _end(e: Elements, leaf: Leaf, iv: Iv) -> str | None:
    """The condition, if a comparison is x < y where x grows from lane to lane and from turn to turn, and y stays."""
    value, idx = leaf
    if not value.op or value.op.name != "arith.cmpi" or PREDICATES[value.op.int("predicate")] != "slt":
        return None
    x, y = (e.at(v, idx) for v in value.op.operands)
    if not (isinstance(x, Aff) and x.step > 0 and e.fits(x) and dict(x.ivs).get(iv, 0) > 0):
        return None
    if not is_uniform(y) or isinstance(y, Aff) and iv in dict(y.ivs) or y.depth >= iv.depth:
        return None
    return e.binary("icmp sge {}", x._replace(step=0), y, "i1").ssa


def _steady(e: Elements, value: ir.Value, idx: Index, leaf: Leaf) -> bool:
    """Whether a value is the same wherever the mask does not hold."""
    op = value.op
    if not _runs(idx) or (value, idx) == leaf or isinstance(e.bound.get(value), Fixed):
        return True
    if op is None:
        return False
    operands = op.operands
    if op.name == "tt.load":
        masked = len(operands) > 1 and leaf in conjuncts(operands[1], idx)
        return masked and all(_steady(e, v, idx, leaf) for v in operands[2:])
    if op.name == "arith.select" and operands[0].type.rank and leaf in conjuncts(operands[0], idx):
        return _steady(e, operands[2], idx, leaf)
    if op.name in REARRANGE:
        return _steady(e, operands[0], source_index(op, idx), leaf)
    if op.name == "arith.constant":
        return True
    return op.name.startswith(_ELEMENTWISE) and all(_steady(e, v, idx, leaf) for v in operands)
