"""Rows of a tensor that read what the next ones read, as windows that overlap do: several at a time, so that it is read
once.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from itertools import combinations

from . import ir
from .elements import PURE
from .masks import mask_at
from .plan import SHAPE
from .values import TRUE, Aff, index, lanes

ROWS = 4


def matrices(low, value: ir.Value) -> list[ir.Op]:
    """The loads of matrices that make `value` element by element, each in the nest that asks for it."""
    found, pending = [], [value]
    while pending:
        value = pending.pop()
        if value in low.elements.bound or value.op is None or value.type.rank < 2:
            continue
        if value.op.name == "tt.load" and value.op in low.plan.fused:
            found.append(value.op)
        elif value.op.name in PURE and value.op.name not in SHAPE:
            pending += value.op.operands
    return list(dict.fromkeys(found))


def dimension(low, value: ir.Value, lane: int) -> int | None:
    """The dimension along which rows of `value`, with lanes along `lane`, read what the next ones read."""
    loads, shape = matrices(low, value), value.type.shape
    rows = [d for d, n in enumerate(shape) if d != lane and n % ROWS == 0]
    if len(loads) < 2 or not rows:
        return None
    e, ivs = low.elements, {}
    read: dict[tuple, list[int]] = defaultdict(list)  # loads that differ by a constant only → these
    with ExitStack() as levels:
        for d in sorted(range(len(shape)), key=lambda d: d != lane):
            ivs[d] = levels.enter_context(low.code.probe(shape[d]))
        at = tuple(lanes(index(ivs[d])) if d == lane else index(ivs[d]) for d in range(len(shape)))
        for load in loads:
            p, mask = e.pointer(e.at(load.operands[0], at)), TRUE
            if len(load.operands) > 1:
                mask = mask_at(e, load.operands[1], at)
            if isinstance(p.off, Aff) and mask.depth <= ivs[lane].depth:  # a row under a mask is read by itself
                read[p.base, p.off.terms, p.off.ivs, p.off.step].append(p.off.const)
    for d in rows:
        for (_, _, strides, _), places in read.items():
            step = dict(strides).get(ivs[d])
            apart = [abs(a - b) for a, b in combinations(places, 2)]
            if step and any(by % step == 0 and 0 < by < ROWS * abs(step) for by in apart):
                return d
    return None
