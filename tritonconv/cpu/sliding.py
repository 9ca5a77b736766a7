"""Rows of a tensor that read what the next ones read, as windows that overlap do: several at a time, so that it is read
once.
"""

from __future__ import annotations

from contextlib import ExitStack

from . import ir
from .masks import mask_at
from .memory import read_by_element
from .values import TRUE, Val, index, lanes, shift

ROWS = 4


def dimension(low, value: ir.Value, lane: int) -> int | None:
    """The dimension along which rows of `value`, with lanes along `lane`, read what the next ones read."""
    loads, shape = read_by_element(low, value), value.type.shape
    if len(loads) < 2:
        return None
    for along in [d for d, n in enumerate(shape) if d != lane and n % ROWS == 0]:
        readers: dict[tuple[Val, Val], tuple[int, ir.Op]] = {}  # where, under which mask → the row and the load
        with ExitStack() as levels:
            at = [index(levels.enter_context(low.code.probe(n))) for n in shape]
            for row in range(ROWS):
                idx = tuple(lanes(i) if d == lane else shift(i, row if d == along else 0) for d, i in enumerate(at))
                for load in loads:
                    first, other = readers.setdefault(_read(low.elements, load, idx), (row, load))
                    if first != row and other is not load:
                        return along
    return None


def _read(e, load: ir.Op, idx) -> tuple[Val, Val]:
    mask = mask_at(e, load.operands[1], idx) if len(load.operands) > 1 else TRUE
    return e.pointer(e.at(load.operands[0], idx)), mask
