"""Matrix products: a tile of accumulators stays in registers over the whole reduction.

`tl.dot` in a loop that does nothing else is interchanged: the tile's panels run outside, the loop inside,

    for each panel of vectors j:
        for each panel of rows i:
            for the loop's turns:
                for kk:
                    acc[i, j] += a[i, kk] * b[kk, j]

with `a` broadcast from memory through row pointers (no im2col copy, no packing) and `b` loaded as vectors. Any other
product first brings its operands into scratch memory, and its accumulators live there between calls.
"""

from __future__ import annotations

from contextlib import ExitStack

from . import ir
from .code import Iv
from .elements import PURE, Buffer, Elements, Fixed, Panels
from .loops import ForLoop, moving_step
from .masks import conjunction, conjuncts
from .memory import write_store
from .plan import SHAPE
from .shapes import source_index
from .values import REG, SIZE, TRUE, Aff, Val, const, index, lanes, shift

UNROLL = 4  # turns of the innermost loop written out: fewer branches, and the end of a short loop is predicted


def _tile(low, elem: str, columns: int) -> tuple[int, int, int]:
    """(rows, vectors, lanes) of the register tile."""
    width = min(columns, low.target.lanes(SIZE[elem]))
    return *low.target.dot_tile(columns // width), width


class Product:
    """One product's code: panels outside, accumulation inside."""

    def __init__(self, low, op: ir.Op):
        self.low, self.op, self.prefix = low, op, ()
        self.e: Elements = low.elements
        self.m, self.k = op.operands[0].type.shape[-2:]
        self.n = op.operands[1].type.shape[-1]
        self.elem = op.result.type.elem
        self.reg = REG[self.elem]
        self.held = "f32" if self.elem in ("f16", "bf16") else self.elem  # accumulated as
        self.rows, self.vectors, self.width = _tile(low, self.held, self.n)

    def run(self, panel):
        """Calls `panel()` for every register tile, with `at_rows` and `at_columns` set to its indices."""
        e, code = self.e, self.low.code
        outer, e.width = e.width, self.width
        step = self.vectors * self.width
        with ExitStack() as loops:
            column = const("index", 0)
            if self.n > step:
                column = index(loops.enter_context(code.loop(self.n, step)).iv)
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
            return product.inner(first, lambda i: left.at(e, i), lambda i: right.at(e, i))

        product.run(lambda: product.accumulate(lambda idx: e.at(c, idx), sums, _into(e, dest)))
    e.bound[op.result] = dest
    low.used = used


def _into(e: Elements, dest: Buffer):
    return lambda idx, value: e.store(dest.pointer(e, idx), value._replace(elem=dest.stored), TRUE)


def _panels(low, value: ir.Value, columns: int) -> Panels:
    plain = low.allocate(value.type.elem, value.type.shape)
    dest = Panels(plain.base, plain.elem, plain.shape, plain.strides, columns)
    low.fill(dest, lambda idx: low.elements.at(value, idx))
    return dest


# ---- the interchanged loop ------------------------------------------------------------------------------------


def _through(value: ir.Value) -> ir.Op | None:
    """The load that an operand comes from, looking through transpositions."""
    while value.op and value.op.name in ("tt.trans", "tt.broadcast", "tt.expand_dims"):
        value = value.op.operands[0]
    return value.op


def _match(low, op: ir.Op) -> ir.Op | None:
    """The only product of a loop that holds nothing else, or None."""
    body, plan = op.body, low.plan
    products = [o for o in body.ops if o.name == "tt.dot"]
    if len(products) != 1:
        return None
    (product,) = products
    a, b, c = product.operands
    if a.type.elem not in ("f32", "f64") or a.type.rank != 2 or c not in body.args or c.users != [product]:
        return None
    position = body.args.index(c) - 1
    if body.ops[-1].operands[position] is not product.result or product.result.users != [body.ops[-1]]:
        return None
    loads = {o for o in body.ops if o.name == "tt.load"}
    if loads != {_through(a), _through(b)} or len(loads) != 2 or not loads <= plan.fused:
        return None
    for o in body.ops:
        if (
            o is not product
            and o not in loads
            and o is not body.ops[-1]
            and (o.name not in PURE or (o.results and o.result in plan.kept))
        ):
            return None
    for argument, last in zip(body.args[1:], body.ops[-1].operands, strict=True):
        if argument is not c and argument.type.rank and (argument.type.is_float or moving_step(argument, last) is None):
            return None
    return product


def fused_loop(low, op: ir.Op) -> bool:
    """Lowers `op` (scf.for) as an interchanged product if it is one. Where its sums go into one store, element by
    element, the store's expression is computed on them in registers."""
    product_op = _match(low, op)
    if product_op is None:
        return False
    e = low.elements
    accumulator = product_op.operands[2]
    position = op.body.args.index(accumulator) - 1
    result, rest = op.results[position], [r for i, r in enumerate(op.results) if i != position]
    product, state = Product(low, product_op), ForLoop(low, op, skip=(accumulator,))
    if not _streams(product, state):
        return False
    first = op.operands[3 + position]
    if any(r.users for r in rest):
        _replay(low, op, state, rest)
    store = low.plan.epilogue(result)
    if store is None:
        dest = low.destinations.get(result) or low.allocate(result.type.elem, result.type.shape)
        _interchange(low, product, state, first, _into(e, dest))
        e.bound[result] = dest
    else:

        beside = _read_beside(low, store.operands[1], result)

        def begin():
            for load in beside:
                for i in product.at_rows:
                    for j in product.at_columns:
                        e.prefetch(load, (shift(i, product.rows), j), cache=1)

        def finish(idx, value):
            e.bound[result] = Fixed(value)
            write_store(e, store, idx)

        low.deferred[store] = lambda: _interchange(low, product, state, first, finish, begin)
    return True


def _read_beside(low, value: ir.Value, sums: ir.Value) -> list[ir.Op]:
    """The loads of matrices, such as a residual, that make `value` together with the sums.

    What they read is mostly in memory, and at the end of a register tile there is nothing left to do meanwhile: it is
    asked for a tile before.
    """
    found, pending = [], [value]
    while pending:
        value = pending.pop()
        if value is sums or value.op is None or value.type.rank < 2:
            continue
        if value.op.name == "tt.load" and value.op in low.plan.fused:
            found.append(value.op)
        elif value.op.name in PURE and value.op.name not in SHAPE:
            pending += value.op.operands
    return found


def _interchange(low, product: Product, state, first_value: ir.Value, finish, begin=lambda: None):
    e, code = low.elements, low.code
    ty, lower, upper, step = state.bounds()
    others = state.phis()

    def loops(first, operands: Operands):
        limit = (
            upper
            if operands.any is None
            else code.pure(code.depth, f"select i1 {operands.any}, {ty} {upper}, {ty} {lower}")
        )
        with code.while_loop(ty, lower, limit, step, [*first, *others]) as loop:
            count = len(first)
            state.bind(loop.ssa, loop.phi[count:], loop.depth, state.arguments())
            phis = [(t, phi) for (t, _), phi in zip(first, loop.phi, strict=False)]
            unroll = UNROLL if operands.any is None else 1  # few panels are ragged
            result = product.inner(phis, operands.a, operands.b, operands.end(), unroll)
            loop.next = [*result, *state.advance(loop.phi[count:], loop.depth)]
        return loop.result[:count]

    def tile(operands: Operands):
        begin()
        product.accumulate(lambda idx: e.at(first_value, idx), lambda first: loops(first, operands), finish)

    def panel():
        alive = Alive(product)
        if not alive.rows:
            return tile(Operands(product))
        with code.arm("whole") as whole:
            region, e.region = e.region, whole.depth  # nothing whose mask is settled is read before the branch
            e.settled |= alive.leaves
            tile(Operands(product))
            e.settled -= alive.leaves
            e.region = region
        with code.arm("ragged") as ragged:
            tile(Operands(product, any=alive.some()))
        code.branch(alive.all(), whole, ragged)

    product.run(panel)


def _streams(product: Product, state) -> bool:
    """Whether the right operand's rows lie side by side (as in packed weights): panels of any other matrix would walk
    memory in large steps, turn after turn, so it is packed first."""
    low, e = product.low, product.e
    outer, e.width = e.width, product.width
    with low.code.probe(1) as turn, low.code.probe(product.k) as kk:
        state.bind("%turn", ["%turn"] * 2 * len(state.carried), turn.depth, state.arguments())
        load, idx = _index_through(product.op.operands[1], (index(kk), lanes(const("index", 0))))
        p = e.pointer(e.at(load.operands[0], idx))
    e.width = outer
    size = SIZE[load.result.type.elem]
    if not isinstance(p.off, Aff) or p.off.step != size:
        return False
    if _stays_in_cache(load):
        return True
    if any(depth >= kk.depth for depth, _ in p.off.terms):
        return False
    return 0 < dict(p.off.ivs).get(kk, 0) <= product.n * size


def _stays_in_cache(load: ir.Op) -> bool:
    """Whether it was given `eviction_policy="evict_last"`; before Triton 3.9 that is number 3."""
    return load.int("evict", 0) == 3 or "evict_last" in load.attrs.get("cachePolicy", "")


def _replay(low, op, state, rest):
    """Results other than the product: the loop once more, for its scalars alone."""
    code = low.code
    ty, lower, upper, step = state.bounds()
    with code.while_loop(ty, lower, upper, step, state.phis()) as loop:
        state.bind(loop.ssa, loop.phi, loop.depth, state.arguments())
        loop.next = state.advance(loop.phi, loop.depth)
    state.bind("", loop.result, code.depth, rest, counter=False)


class Alive:
    """Which rows of a panel take part at all: the left operand's row masks that do not change inside the loop."""

    def __init__(self, product: Product):
        self.e, self.code = product.e, product.low.code
        self.leaves: set = set()
        self.rows: list[Val] = []
        load = _through(product.op.operands[0])
        if len(load.operands) < 2 or not _zero(load):
            return
        for row in product.at_rows:
            with self.code.probe(product.k) as kk:
                load, idx = _index_through(product.op.operands[0], (row, index(kk)))
                leaves = [(v, i) for v, i in conjuncts(load.operands[1], idx) if not _varies(v, load.block)]
                leaves = [(v, i) for v, i in leaves if self.e.at(v, i).depth < kk.depth]
            self.leaves |= {v for v, _ in leaves}
            if leaves:
                self.rows.append(conjunction(self.e, leaves))

    def _fold(self, how: str) -> str:
        result = self.rows[0]
        for row in self.rows[1:]:
            result = self.e.binary(f"{how} {{}}", result, row)
        return result.ssa

    def all(self) -> str:
        return self._fold("and")

    def some(self) -> str:
        return self._fold("or")


def _varies(value: ir.Value, body: ir.Block) -> bool:
    """Whether a value depends on what the loop with this body carries."""
    if value.op is None or value.op.block is not body:
        return value in body.args
    return value.op.name == "tt.load" or any(_varies(v, body) for v in value.op.operands)


class Operands:
    """The two loads of an interchanged product. Masks on the reduction index alone become the inner loop's bound, if
    both factors have the same: zero times what is not finite would count.

    `any`: a condition (i1) without which the panel has no row to compute.
    """

    def __init__(self, product: Product, any: str | None = None):
        self.product, self.e, self.any = product, product.e, any
        self.left, self.right = product.op.operands[:2]
        self.dropped: set = set()
        self.masks: dict[tuple, Val] = {}  # of a row, the same for every kk

    def end(self) -> str | None:
        """The inner loop's runtime bound, if masks give one."""
        e, product = self.e, self.product
        limits: list[set[Val]] = []
        masks: set[ir.Value] = set()
        for value in (self.left, self.right):
            with product.low.code.probe(product.k) as kk:
                place = (product.at_rows[0], index(kk)) if value is self.left else (index(kk), product.at_columns[0])
                load, idx = _index_through(value, place)
                if len(load.operands) < 2 or not _zero(load):
                    return None
                found = [(leaf, self._limit(leaf, at, kk)) for leaf, at in conjuncts(load.operands[1], idx)]
            masks |= {leaf for leaf, bound in found if bound is not None}
            limits.append({bound for _, bound in found if bound is not None})
        if not limits[0] or limits[0] != limits[1]:
            return None
        self.dropped = masks
        end = const("i64", product.k)
        for bound in limits[0]:
            end = e.apply("llvm.smin", end, e.cast(bound, "i64"))
        return e.scalar(end)[0]

    def _limit(self, leaf: ir.Value, at, probe: Iv) -> Val | None:
        """n such that the comparison `leaf` holds exactly for kk < n, if it depends on kk alone."""
        e = self.e
        if not leaf.op or leaf.op.name != "arith.cmpi" or leaf.op.int("predicate") != 2:
            return None
        if not any(isinstance(i, Aff) and i.ivs and i.ivs[0][0] is probe for i in at):
            return None
        x, y = (e.at(v, at) for v in leaf.op.operands)
        if not (isinstance(x, Aff) and isinstance(y, Aff)):
            return None
        room = e.add(y, x, -1)
        bound = room._replace(ivs=tuple(p for p in room.ivs if p[0] is not probe))
        return bound if dict(room.ivs).get(probe) == -1 and not room.step and bound.depth < probe.depth else None

    def a(self, idx) -> Val:
        return self._load(self.left, idx)

    def b(self, idx) -> Val:
        return self._load(self.right, idx)

    def _load(self, value: ir.Value, idx) -> Val:
        e = self.e
        load, idx = _index_through(value, idx)
        mask: Val = TRUE
        if len(load.operands) > 1:
            leaves = tuple((v, i) for v, i in conjuncts(load.operands[1], idx) if v not in self.dropped)
            mask = self.masks.get(leaves)
            if mask is None:
                mask = self.masks[leaves] = conjunction(e, leaves)
        return e.read(load, idx, mask)


def _zero(load: ir.Op) -> bool:
    """Whether what the mask leaves out reads as zero."""
    if len(load.operands) < 3:
        return True
    value = load.operands[2]
    while value.op and value.op.name in SHAPE:
        value = value.op.operands[0]
    return bool(value.op) and value.op.name == "arith.constant" and ir.constant(value.op) == 0


def _index_through(value: ir.Value, idx):
    while value.op.name != "tt.load":
        idx = source_index(value.op, idx)
        value = value.op.operands[0]
    return value.op, idx
