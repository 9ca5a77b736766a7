"""Stores past the caches, `cache_modifier=".cs"`: their vectors begin on lines of memory, wherever a row begins."""

from __future__ import annotations

from contextlib import ExitStack

from . import ahead, ir, layout, memory
from .access import LINE
from .code import Iv
from .values import SIZE, Aff, Val, const, index, lanes


def aligned(low, op: ir.Op) -> bool:
    """Writes a nest for a store that has this modifier: what lies before the first line, whole lines, and the rest.
    False if it is to be an ordinary nest."""
    e, code, type = low.elements, low.code, op.operands[1].type
    shape, size, outer = type.shape or (), SIZE[type.elem], e.width
    if not shape or not memory.streams(op):
        return False
    lane = layout.order(low, shape, lambda idx: memory.write_store(e, op, idx))[-1]
    n, width = shape[lane], 2 * low.target.lanes(max(4, size))
    if n < 2 * width or width * size % LINE or not _runs(low, op, lane):
        return False
    with ExitStack() as loops:
        at = [low.turns(loops, 1 if d == lane else m, 1) for d, m in enumerate(shape)]

        def write(i: Aff, within: Val | None = None):
            memory.write_store(e, op, tuple(lanes(i) if d == lane else j for d, j in enumerate(at)), within)

        def compare(how: str, bound: str) -> Val:
            """Of the lanes' numbers."""
            return e.binary(
                f"icmp {how} {{}}", lanes(const("index", 0)), Aff("index", ((depth, bound),), (), 0, 0), "i1"
            )

        start, depth = e.address(e.pointer(e.at(op.operands[0], tuple(at))))
        e.width = width
        past = code.pure(depth, f"and i64 {code.pure(depth, f'ptrtoint ptr {start} to i64')}, {LINE - 1}")
        before = code.pure(depth, f"and i64 {code.pure(depth, f'sub i64 {LINE}, {past}')}, {LINE - 1}")
        first = code.pure(depth, f"udiv i64 {before}, {size}")
        turns = code.pure(depth, f"udiv i64 {code.pure(depth, f'sub i64 {n}, {first}')}, {width}")
        done = code.pure(depth, f"add i64 {first}, {code.pure(depth, f'mul i64 {turns}, {width}')}")
        with code.when(code.pure(depth, f"icmp ne i64 {first}, 0")):
            write(const("index", 0), compare("ult", first))
        with code.while_loop("i64", "0", turns, "1") as loop:
            iv = Iv(loop.ssa, loop.depth, n // width, width)
            i = Aff("index", ((depth, first),), ((iv, width),), 0, 0)
            low.speculate(lambda: write(i))
            ahead.ask(low, op, tuple(lanes(i) if d == lane else j for d, j in enumerate(at)))
        with code.when(code.pure(depth, f"icmp ult i64 {done}, {n}")):
            write(const("index", n - width), compare("uge", code.pure(depth, f"sub i64 {done}, {n - width}")))
    e.width = outer
    return True


def _runs(low, op: ir.Op, lane: int) -> bool:
    """Whether a run of lanes is a run of memory."""
    e, outer = low.elements, low.elements.width
    with ExitStack() as levels:
        at = [index(levels.enter_context(low.code.probe(n))) for n in op.operands[1].type.shape]
        e.width = low.target.lanes(4)
        p = e.pointer(e.at(op.operands[0], tuple(lanes(i) if d == lane else i for d, i in enumerate(at))))
    e.width = outer
    return isinstance(p.off, Aff) and p.off.step == SIZE[op.operands[1].type.elem]
