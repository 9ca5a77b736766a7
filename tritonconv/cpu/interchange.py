"""`tl.dot` in a loop that does nothing else, interchanged: the tile's panels run outside, the loop inside,

    for each panel of vectors j:
        for each panel of rows i:
            for the loop's turns:
                for kk:
                    acc[i, j] += a[i, kk] * b[kk, j]

with `a` broadcast from memory through row pointers (no im2col copy, no packing) and `b` loaded as vectors.
"""

from __future__ import annotations

from functools import partial

from . import ir
from .dot import UNROLL, Product
from .elements import PURE, Fixed
from .loops import ForLoop, moving_step
from .masks import mask_at
from .memory import read_by_element, write_store
from .operands import Alive, Operands, evicted, index_through, through
from .values import FALSE, SIZE, Aff, const, index, lanes, shift


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
    if loads != {through(a), through(b)} or len(loads) != 2 or not loads <= plan.fused:
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
    store = low.plan.epilogue(result)
    product = Product(low, product_op, None if store is None else _wanted(low, store))
    state = ForLoop(low, op, skip=(accumulator,))
    # The right operand's rows have to lie side by side, as in packed weights: panels of any other matrix would walk
    # memory in large steps, turn after turn, so it is packed first, unless it is said when it leaves the caches.
    pitch, width = _pitch(product, state), product.n * SIZE[product.elem]
    right = through(product_op.operands[1])
    if pitch is None or not (0 < pitch <= width or evicted(right, "last") or evicted(right, "first")):
        return False
    reduction = _reduction(low, op, product) if pitch == width else 0
    first = op.operands[3 + position]
    if any(r.users for r in rest):
        _replay(low, state, rest)
    if store is None:
        dest = low.destinations.get(result) or low.allocate(result.type.elem, result.type.shape)
        _interchange(low, product, state, reduction, first, partial(dest.store, e))
        e.bound[result] = dest
    else:
        # What is read beside the sums, such as a residual, is mostly in memory, and at the end of a register tile there
        # is nothing left to do meanwhile: it is asked for a tile before.
        beside = read_by_element(low, store.operands[1])

        def begin():
            for load in beside:
                for i in product.at_rows:
                    for j in product.at_columns:
                        e.prefetch(load, (shift(i, product.rows), j), cache=1)

        def finish(idx, value):
            e.bound[result] = Fixed(value)
            write_store(e, store, idx)

        low.deferred[store] = lambda: _interchange(low, product, state, reduction, first, finish, begin)
    return True


def _wanted(low, store: ir.Op) -> int:
    """Columns, from the first on, beyond which the mask of `store` never holds; a multiple of a few."""
    e, (rows, columns), outer = low.elements, store.operands[1].type.shape, low.elements.width
    few = e.width = max(1, low.target.lanes(SIZE[store.operands[1].type.elem]) // 2)
    with low.code.probe(rows) as row:
        while len(store.operands) > 2 and columns > few:
            if mask_at(e, store.operands[2], (index(row), lanes(const("index", columns - few)))) != FALSE:
                break
            columns -= few
    e.width = outer
    return columns


def _interchange(low, product: Product, state, reduction: int, first_value: ir.Value, finish, begin=lambda: None):
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
        product.accumulate(partial(e.at, first_value), lambda first: loops(first, operands), finish)

    def panel():
        alive = Alive(product)
        if not alive.rows:
            return tile(Operands(product, reduction=reduction))
        # Closed: only one of them runs, and what is computed behind the product need not be kept over it.
        with code.arm("whole", closed=True) as whole:
            region, e.region = e.region, whole.depth  # nothing whose mask is settled is read before the branch
            e.settled |= alive.leaves
            tile(Operands(product, reduction=reduction))
            e.settled -= alive.leaves
            e.region = region
        with code.arm("ragged", closed=True) as ragged:
            tile(Operands(product, any=alive.some()))
        code.branch(alive.all(), whole, ragged)

    product.run(panel)


def _pitch(product: Product, state) -> int | None:
    """Bytes from row to row of the right operand, whose rows are runs of memory; None where they are not, 0 where the
    bytes change from turn to turn."""
    low, e = product.low, product.e
    outer, e.width = e.width, product.width
    with low.code.probe(1) as turn, low.code.probe(product.k) as kk:
        state.bind("%turn", ["%turn"] * 2 * len(state.carried), turn.depth, state.arguments())
        load, idx = index_through(product.op.operands[1], (index(kk), lanes(const("index", 0))))
        p = e.pointer(e.at(load.operands[0], idx))
    e.width = outer
    if not isinstance(p.off, Aff) or p.off.step != SIZE[load.result.type.elem]:
        return None
    return 0 if any(depth >= kk.depth for depth, _ in p.off.terms) else dict(p.off.ivs).get(kk, 0)


def _reduction(low, op: ir.Op, product: Product) -> int:
    """Over how many elements the products of a loop (scf.for) sum, if that is a constant, else 0."""
    bounds = [low.elements.at(v) for v in op.operands[:3]]
    return len(range(*(v.const for v in bounds))) * product.k if all(v.is_const for v in bounds) else 0


def _replay(low, state, rest):
    """Results other than the product: the loop once more, for its scalars alone."""
    code = low.code
    ty, lower, upper, step = state.bounds()
    with code.while_loop(ty, lower, upper, step, state.phis()) as loop:
        state.bind(loop.ssa, loop.phi, loop.depth, state.arguments())
        loop.next = state.advance(loop.phi, loop.depth)
    state.bind("", loop.result, code.depth, rest, counter=False)
