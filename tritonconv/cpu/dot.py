"""Matrix products: a tile of accumulators stays in registers over the whole reduction.

`tl.dot` in a loop that does nothing else is turned inside out (`interchange.py`). Any other product first brings its
operands into scratch memory, and its accumulators live there between calls.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from . import ir
from .code import Iv
from .elements import Elements, Panels
from .values import REG, SIZE, Aff, Val, const, index, lanes, shift

UNROLL = 4  # turns of the innermost loop written out: fewer branches, and the end of a short loop is predicted


class Product:
    """One product's code: panels outside, accumulation inside. `columns`: how many are wanted, from the first on."""

    def __init__(self, low, op: ir.Op, columns: int | None = None):
        self.low, self.op, self.prefix = low, op, ()
        self.e: Elements = low.elements
        self.m, self.k = op.operands[0].type.shape[-2:]
        self.n = op.operands[1].type.shape[-1]
        self.elem = op.result.type.elem
        self.reg = REG[self.elem]
        self.held = "f32" if self.elem in ("f16", "bf16") else self.elem  # accumulated as
        self.columns = columns or self.n
        self.rows, self.vectors, self.width = low.target.register_tile(self.columns, SIZE[self.held])

    def run(self, panel):
        """Calls `panel()` for every register tile, with `at_rows` and `at_columns` set to its indices."""
        e, code = self.e, self.low.code
        outer, e.width = e.width, self.width
        step = self.vectors * self.width
        with ExitStack() as loops:
            column = const("index", 0)
            if self.columns > step:
                column = index(loops.enter_context(code.loop(self.columns, step)).iv)
            self.low.speculate(lambda: self._rows(column, panel))
        e.width = outer

    def _rows(self, column: Aff, panel):
        code = self.low.code
        full = self.m // self.rows * self.rows
        if full > self.rows:
            with code.loop(full, self.rows) as loop:
                self._panel(index(loop.iv), column, self.rows, panel)
        elif full:
            self._panel(const("index", 0), column, self.rows, panel)
        if full < self.m:
            self._panel(const("index", full), column, self.m - full, panel)

    def _panel(self, row: Aff, column: Aff, rows: int, panel):
        self.at_rows = [shift(row, i) for i in range(rows)]
        self.at_columns = [
            lanes(shift(column, j * self.width)) if self.width > 1 else shift(column, j) for j in range(self.vectors)
        ]
        panel()

    def accumulate(self, start, loops, finish):
        """One register tile: `start(idx)` its first values, `loops(first)` writes what adds to them, `finish(idx,
        value)` takes the sums."""
        e = self.e
        places = [(*self.prefix, i, j) for i in self.at_rows for j in self.at_columns]
        ty = f"<{self.width} x {self.reg}>" if self.width > 1 else self.reg
        first = [(ty, self._register(start(idx))) for idx in places]
        for idx, ssa in zip(places, loops(first), strict=True):
            value = e.wrap(self.elem, ssa, self.low.code.depth, self.width if self.width > 1 else 0)
            finish(idx, e.rounded(value))

    def _register(self, v: Val) -> str:
        return (self.e.vector(v, self.width) if self.width > 1 else self.e.scalar(v))[0]

    def multiply(self, kk: Aff, acc: list[str], a, b) -> list[str]:
        """acc[i, j] += a(i, kk) * b(kk, j) for the panel."""
        out = []
        columns = [b((*self.prefix, kk, j)) for j in self.at_columns]
        for i, at in enumerate(self.at_rows):
            x = a((*self.prefix, at, kk))
            for j, y in enumerate(columns):
                out.append(self._step(acc[i * self.vectors + j], x, y))
        return out

    def inner(self, first: list[tuple[str, str]], a, b, end: str | None = None, unroll: int = UNROLL) -> list[str]:
        """The innermost loop: kk from 0 to k, or to `end` (i64) where masks end it early."""
        code, e = self.low.code, self.e
        outer, e.region = e.region, code.depth + 1
        if end is None:
            unroll = next(u for u in (unroll, 2, 1) if self.k % u == 0)
            with code.loop(self.k, unroll, first) as loop:
                acc = loop.phi
                for u in range(unroll):
                    acc = self.multiply(shift(index(loop.iv), u), acc, a, b)
                loop.next = acc
        else:
            with code.while_loop("i64", "0", end, "1", first) as loop:
                loop.next = self.multiply(index(Iv(loop.ssa, loop.depth, self.k)), loop.phi, a, b)
        e.region = outer
        return loop.result

    def _step(self, acc: str, x: Val, y: Val) -> str:
        e, code = self.e, self.low.code
        held = e.wrap(self.elem, acc, code.depth, self.width if self.width > 1 else 0)
        if self.elem in ("i32", "i64"):
            product = e.mul(e.cast(x, self.elem), e.cast(y, self.elem))
            return self._register(e.add(held, product))
        fma = e.apply("llvm.fmuladd", *(v._replace(elem=self.held) for v in (x, y, held)))
        return self._register(fma)


def lower_dot(low, op: ir.Op):
    """A product by itself: operands and accumulators in scratch memory."""
    a, b, c = op.operands
    e, code, used = low.elements, low.code, low.used
    dest = low.destinations.get(op.result)
    if dest is None:
        dest = low.allocate(op.result.type.elem, op.result.type.shape)
        used = low.used
    batch = op.result.type.shape[:-2]
    product = Product(low, op)
    left, right = low.buffer(a), low.buffer(b) if batch else _panels(low, b, product.vectors * product.width)
    with ExitStack() as loops:
        product.prefix = tuple(index(loops.enter_context(code.loop(n)).iv) for n in batch)

        def sums(first):
            return product.inner(first, partial(left.at, e), partial(right.at, e))

        product.run(lambda: product.accumulate(partial(e.at, c), sums, partial(dest.store, e)))
    e.bound[op.result] = dest
    low.used = used


def _panels(low, value: ir.Value, columns: int) -> Panels:
    plain = low.allocate(value.type.elem, value.type.shape)
    dest = Panels(plain.base, plain.elem, plain.shape, plain.strides, columns)
    low.fill(dest, value)
    return dest
