"""Masks as conjunctions of comparisons, so that each can be settled, bounded or hoisted by itself."""

from __future__ import annotations

from collections.abc import Sequence

from . import ir
from .elements import Elements, Index, pure
from .parse import constant
from .shapes import REARRANGE, source_index
from .values import FALSE, TRUE, Val, const, is_uniform

# of arith.cmpi, by number
PREDICATES = ("eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge")


@pure("arith.andi")
def _andi(e, op, idx):
    if op.result.type.elem != "i1":
        return e.binary("and {}", *e.args(op, idx))
    return mask_at(e, op.result, idx)


def conjuncts(mask: ir.Value, idx: Index):
    """The masks that `mask` is the conjunction of, each with its own index."""
    op = mask.op
    if op and op.name == "arith.andi":
        for v in op.operands:
            yield from conjuncts(v, idx)
    elif op and op.name in REARRANGE:
        yield from conjuncts(op.operands[0], source_index(op, idx))
    else:
        yield mask, idx


def mask_at(e: Elements, mask: ir.Value, idx: Index) -> Val:
    return conjunction(e, list(conjuncts(mask, idx)))


def conjunction(e: Elements, leaves: Sequence[tuple[ir.Value, Index]]) -> Val:
    """The conjunction of masks. 0 <= x and x < n together are one unsigned comparison, x < max(n, 0)."""
    leaves = [leaf for leaf in leaves if leaf[0] not in e.settled]
    lower = {(v.op.operands[0], i) for v, i in leaves if _predicate(v) == "sge" and _is_zero(v.op.operands[1])}
    upper = [(v.op.operands[0], i) for v, i in leaves if _predicate(v) == "slt"]
    # lanes are compared signed, which the fast path can assume away
    both = {place for place in upper if place in lower and is_uniform(e.at(*place))}
    result: Val = TRUE
    for leaf, idx in leaves:
        ranged = _predicate(leaf) in ("sge", "slt") and (leaf.op.operands[0], idx) in both
        if ranged and _predicate(leaf) == "sge" and _is_zero(leaf.op.operands[1]):
            continue
        if ranged:
            x, n = (e.at(v, idx) for v in leaf.op.operands)
            part = e.binary("icmp ult {}", x, e.apply("llvm.smax", n, const(n.elem, 0)), "i1")
        else:
            part = e.at(leaf, idx)
        if part == FALSE:
            return FALSE
        if part != TRUE:
            result = part if result == TRUE else e.binary("and {}", result, part)
    return result


def _predicate(mask: ir.Value) -> str:
    return PREDICATES[mask.op.int("predicate")] if mask.op and mask.op.name == "arith.cmpi" else ""


def _is_zero(v: ir.Value) -> bool:
    return bool(v.op) and v.op.name == "arith.constant" and constant(v.op) == 0
