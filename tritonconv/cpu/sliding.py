"""Rows of a tensor that read what the next ones read, as windows that overlap do: several at a time, so that it is read
once.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from itertools import combinations

from . import ir
from .masks import mask_at
from .memory import read_by_element
from .values import TRUE, Aff, index, lanes

ROWS = 4


def dimension(low, value: ir.Value, lane: int) -> int | None:
    """The dimension along which rows of `value`, with lanes along `lane`, read what the next ones read."""
    loads, shape = read_by_element(low, value), value.type.shape
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
