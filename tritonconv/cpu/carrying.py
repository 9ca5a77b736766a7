"""Loops that carry tensors of a few vectors in registers: those in which, loops inside of them included, nothing is
done but to turn what they carry, element by element, into what they carry next. Others carry theirs in memory.
"""

from __future__ import annotations

from . import ir
from .elements import PURE, Index
from .values import SIZE, const, lanes

_VECTORS = 2  # of a tensor, as in any other nest


def width(low, loop: ir.Op) -> int:
    """Lanes of the tensors that a loop (scf.for) carries in registers; 0 if it carries none there."""
    types = {v.type for v in loop.results if v.type.rank} if loop.name == "scf.for" else ()
    if len({t.shape for t in types}) != 1 or not all(t.is_float for t in types):
        return 0
    (shape,) = {t.shape for t in types}
    size = max(SIZE[t.elem] for t in types)
    elements = next(iter(types)).numel
    one_row = 1 < max(shape) == elements  # a single element is no vector: it is read as a scalar
    if not one_row or elements * max(4, size) > _VECTORS * low.target.vector_bytes:
        return 0
    return elements if _by_element(low, loop, elements) else 0


def _by_element(low, loop: ir.Op, lanes: int) -> bool:
    """Whether all that the loop does is done where an element of what it carries is asked for."""
    *ops, last = loop.body.ops
    for op in ops:
        if op.name == "scf.for":
            if not (width(low, op) == lanes if any(v.type.rank for v in op.results) else _by_element(low, op, lanes)):
                return False
        elif op.name == "tt.load":
            if op.result.type.rank and (op not in low.plan.fused or low.plan.roots[op.result] != {last}):
                return False
        elif op.name not in PURE or op.result.type.rank and op.result in low.plan.kept:
            return False
    return True


def place(type: ir.Type) -> Index:
    """Where such a tensor is asked for."""
    return tuple(lanes(const("index", 0)) if n > 1 else const("index", 0) for n in type.shape)
