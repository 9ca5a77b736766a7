"""Rows that a program reads more than once: the last nest that reads one asks for that of the next program.

Only the first nest waits for memory: the others find the row in the caches, and leave memory idle. Hardware fetches
ahead by itself within a page, but not from where one program's row ends to where the next one's begins.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager

from . import ir
from .elements import PURE, Fixed, Index
from .plan import Plan
from .values import SIZE, const

_ROW = 1 << 13  # bytes of a row for which it is worth it
_PROGRAM = "tt.get_program_id"


def rows(plan: Plan, block: ir.Block) -> dict[ir.Op, list[ir.Op]]:
    """The nests of a program's outermost block → the loads that each reads as the last."""
    place, last = {op: i for i, op in enumerate(block.ops)}, defaultdict(list)
    for load in (op for op in block.ops if op in plan.fused):
        nests = {plan.nest(root) for root in plan.roots[load.result]}
        long = load.result.type.numel * SIZE[load.result.type.elem] >= _ROW
        if long and len(nests) > 1 and _differs(load.operands[0]):
            last[max(nests, key=place.get)].append(load)
    return last


def _differs(address: ir.Value) -> bool:
    """Whether an address is computed from the program's number, and from nothing in memory."""
    seen, values, programs = set(), [address], 0
    while values:
        value = values.pop()
        if value.op is None or value in seen:
            continue
        seen.add(value)
        programs += value.op.name == _PROGRAM
        if value.op.name == "tt.load" or value.op.name not in {*PURE, _PROGRAM, "tt.get_num_programs"}:
            return False
        values += value.op.operands
    return programs > 0


def ask(low, nest: ir.Op, idx: Index) -> None:
    """Has a turn of a nest ask for what the next program will read where this one reads at `idx`."""
    loads = low.ahead.get(nest)
    if not loads:
        return
    with _next_program(low):
        for load in loads:
            low.elements.prefetch(load, idx, cache=2)


@contextmanager
def _next_program(low):
    """What is asked for inside is as in the next program of a row of the grid."""
    e, levels = low.elements, low.code.levels
    ids = [op for op in low.function.body.ops if op.name == _PROGRAM and op.int("axis") == 0]
    here = {op.result: e.bound[op.result] for op in ids}
    memos = [level.memo for level in levels]
    for level in levels:
        level.memo = {}
    for value, held in here.items():
        e.bound[value] = Fixed(e.add(held.value, const("i32", 1)))
    yield
    e.bound.update(here)
    for level, memo in zip(levels, memos, strict=True):
        level.memo = memo
