"""Tensors that memory holds along one dimension and that are wanted along another: copied by squares, which are turned
in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from . import ir, layout
from .code import Code
from .elements import Buffer, Index
from .values import REG, SIZE, Val, lanes, shift

Body = Callable[[Index], Val]


def source(low, dest: Buffer, body: Body, lane: int) -> int | None:
    """The dimension along which `body` reads runs of memory, if that is not `lane`, along which `dest` has them."""
    shape, width = dest.shape, low.target.lanes(4)
    long = [d for d, n in enumerate(shape) if n >= width > 1]
    if SIZE[dest.stored] != 4 or lane not in long or len(long) < 2:
        return None
    cost = {d: layout.cost(low, shape, body, d) for d in long}
    along = min(long, key=cost.get)
    return along if 2 * cost[along] < cost[lane] else None


def before(low, loads: Sequence[ir.Value], write: Callable[..., None]) -> int | None:
    """Brings what the nest of `write` loads into buffers, where it reads along another dimension than that along which
    it writes; returns that, if it had to know."""
    if not loads:
        return None
    type = loads[0].type
    *outer, lane = layout.order(low, type.shape, write)
    for value in dict.fromkeys(loads):
        body, used = partial(low.elements.at, value), low.used
        dest = low.allocate(value.type.elem, type.shape, (*outer, lane))
        if source(low, dest, body, lane) is None:
            low.used = used
        else:
            low.keep(value, dest)
    return lane


def fill(low, dest: Buffer, body: Body, lane: int, along: int):
    """Writes `body`, which is read along one dimension, to a buffer whose runs lie along `lane`."""
    e, code, width, outer = low.elements, low.code, low.target.lanes(4), low.elements.width
    with ExitStack() as loops:
        at = {}
        for d in sorted(range(len(dest.shape)), key=lambda d: (d == along, d == lane)):
            n, step = dest.shape[d], width if d in (lane, along) else 1
            at[d] = low.turns(loops, n, step)
        e.width = width

        def place(i: Val, j: Val) -> Index:
            """Where the index along the source is i, and that along the destination j."""
            return tuple(i if d == along else j if d == lane else at[d] for d in range(len(at)))

        def square():
            i, j = at[along], at[lane]
            rows = [e.vector(body(place(lanes(i), shift(j, n))))[0] for n in range(width)]
            first, second = (dest.pointer(e, place(shift(i, n), lanes(j))) for n in range(2))
            step = e.scalar(e.add(second.off, first.off, -1))[0]
            turn = _function(code, REG[dest.stored], width)
            given = ", ".join(f"<{width} x {REG[dest.stored]}> {row}" for row in rows)
            code.do(f"call void {turn}({given}, ptr {e.address(first)[0]}, i64 {step})")

        low.speculate(square)
    e.width = outer


def _function(code: Code, base: str, width: int) -> str:
    """What turns a square, given as rows, and writes it to rows of memory so many bytes apart: it is long, and compiled
    once for all squares of a kernel."""
    ty, inner = f"<{width} x {base}>", Code()
    for n, column in enumerate(_turned(inner, base, [f"%row{n}" for n in range(width)])):
        at = inner.op(f"getelementptr i8, ptr %to, i64 {inner.op(f'mul i64 %step, {n}')}")
        inner.do(f"store {ty} {column}, ptr {at}, align {SIZE['f32']}")
    rows, name = ", ".join(f"{ty} %row{n}" for n in range(width)), f"turn_{base}"
    head = f"define internal void @{name}({rows}, ptr %to, i64 %step) noinline {{"
    code.declared[name] = "\n".join((head, *inner.top.lines, "  ret void", "}"))
    return f"@{name}"


def _turned(code: Code, base: str, rows: list[str]) -> list[str]:
    """The columns of a square: blocks of half its size change places, then blocks of a quarter, to single numbers."""
    width, half = len(rows), len(rows) // 2
    ty = f"<{width} x {base}>"
    while half:
        upper = ", ".join(f"i32 {i + width - half if i & half else i}" for i in range(width))
        lower = ", ".join(f"i32 {i + width if i & half else i + half}" for i in range(width))
        new = list(rows)
        for i in range(width):
            if not i & half:
                pair = f"{ty} {rows[i]}, {ty} {rows[i + half]}"
                new[i] = code.op(f"shufflevector {pair}, <{width} x i32> <{upper}>")
                new[i + half] = code.op(f"shufflevector {pair}, <{width} x i32> <{lower}>")
        rows, half = new, half // 2
    return rows
