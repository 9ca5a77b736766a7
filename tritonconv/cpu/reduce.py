"""Reductions and scans with any combine region, on whole vectors."""

from __future__ import annotations

from contextlib import ExitStack

from .elements import Elements, Fixed
from .values import REG, SIZE, TRUE, Vec, const, index, is_uniform, lanes


def combine(e: Elements, op, left: list, right: list) -> list:
    """The operation's region applied to two lists of values."""
    block, memo = op.body, e.code.top.memo
    e.code.top.memo = {}
    for argument, value in zip(block.args, [*left, *right], strict=True):
        e.bound[argument] = Fixed(value)
    results = [e.at(v) for v in block.ops[-1].operands]
    e.code.top.memo = memo
    return results


def _register(e: Elements, v, width: int) -> tuple[str, str]:
    """(LLVM type, SSA name) of a value as a loop-carried register."""
    ssa = (e.vector(v, width) if width > 1 else e.scalar(v))[0]
    return (f"<{width} x {REG[v.elem]}>" if width > 1 else REG[v.elem]), ssa


def _running(low, n: int, step: int, width: int, read, op) -> list:
    """Combines read(0), read(step), …, read(n - step)."""
    e, code = low.elements, low.code
    acc = read(const("index", 0))
    if n == step:
        return acc
    elems = [v.elem for v in acc]
    first = [_register(e, v, width) for v in acc]
    with code.loop(n - step, step, first) as loop:
        held = [e.wrap(t, p, loop.depth, width if width > 1 else 0) for t, p in zip(elems, loop.phi, strict=True)]
        at = index(loop.iv)
        new = combine(e, op, held, read(at._replace(const=step)))
        loop.next = [_register(e, v, width)[1] for v in new]
    return [e.wrap(t, r, code.depth, width if width > 1 else 0) for t, r in zip(elems, loop.result, strict=True)]


def _across(e: Elements, op, acc: list, width: int) -> list:
    """Combines the lanes of vectors: halves, then quarters … then lane 0."""
    half = width // 2
    while half:
        other = []
        for v in acc:
            ssa, depth = e.vector(v, width)
            ty = f"<{width} x {REG[v.elem]}>"
            picks = ", ".join(f"i32 {(i + half) % width}" for i in range(width))
            moved = e.code.pure(depth, f"shufflevector {ty} {ssa}, {ty} poison, <{width} x i32> <{picks}>")
            other.append(Vec(v.elem, moved, depth, width))
        acc = combine(e, op, acc, other)
        half //= 2
    lane0 = []
    for v in acc:
        if is_uniform(v):
            lane0.append(v)
        else:
            ssa = e.code.pure(v.depth, f"extractelement <{width} x {REG[v.elem]}> {v.ssa}, i64 0")
            lane0.append(e.wrap(v.elem, ssa, v.depth, 0))
    return lane0


def lower_reduce(low, op):
    e, code = low.elements, low.code
    shape, axis = op.operands[0].type.shape, op.int("axis")
    rest = [d for d in range(len(shape)) if d != axis]
    size = max(4, *(v.type.numel and _size(v) for v in op.operands))
    dests = [low.allocate(r.type.elem, r.type.shape) if r.type.rank else None for r in op.results]
    # lanes run along the reduced axis if it is the last one or nothing else is long enough
    lane = (
        axis
        if axis == len(shape) - 1 or all(shape[d] == 1 for d in rest)
        else max(rest, key=lambda d: (shape[d] > 1, d))
    )
    # partial results in several registers hide the latency of combining
    width, outer = min(shape[lane], 4 * low.target.lanes(size)), e.width
    if axis != lane and shape[lane] > width:
        return _by_rows(low, op, axis, lane, dests)
    region, e.region = e.region, e.region
    with ExitStack() as loops:
        at = {}
        for d in rest:
            step = width if d == lane else 1
            here = const("index", 0) if shape[d] == step else index(loops.enter_context(code.loop(shape[d], step)).iv)
            at[d] = lanes(here) if d == lane and width > 1 else here
        e.width = width

        def read(i):
            i = lanes(i) if axis == lane and width > 1 else i
            idx = tuple(i if d == axis else at[d] for d in range(len(shape)))
            return [e.at(v, idx) for v in op.operands]

        acc = _running(low, shape[axis], width if axis == lane else 1, width, read, op)
        if axis == lane:
            if width > 1:
                acc = _across(e, op, acc, width)
            e.width = 1
        idx = tuple(at[d] for d in rest)
        for dest, value, result in zip(dests, acc, op.results, strict=True):
            if dest:
                e.store(dest.pointer(e, idx), value._replace(elem=dest.stored), TRUE)
            else:
                e.bound[result] = Fixed(value)
    e.width, e.region = outer, region
    for dest, result in zip(dests, op.results, strict=True):
        if dest:
            e.bound[result] = dest


def _by_rows(low, op, axis: int, lane: int, dests: list):
    """Reads memory from end to end, as its prefetchers expect: at each index of the axis a whole row, which is combined
    with `dests`."""
    e, code = low.elements, low.code
    shape = op.operands[0].type.shape
    rest = shape[:axis] + shape[axis + 1 :]

    def row(i, more: bool):
        def body(place):
            new = [e.at(v, (*place[:axis], i, *place[axis:])) for v in op.operands]
            if more:
                new = combine(e, op, [dest.at(e, place) for dest in dests], new)
            for dest, value in zip(dests, new, strict=True):
                e.store(dest.pointer(e, place), value._replace(elem=dest.stored), TRUE)

        low.nest(rest, body, max(dests, key=lambda dest: SIZE[dest.elem]).elem, lane - (axis < lane))

    row(const("index", 0), more=False)
    if shape[axis] > 1:
        with code.loop(shape[axis] - 1) as loop:
            row(index(loop.iv)._replace(const=1), more=True)
    for dest, result in zip(dests, op.results, strict=True):
        e.bound[result] = dest


def _size(value) -> int:
    return SIZE[value.type.elem]


def lower_scan(low, op):
    """A running combination along the axis, in lanes over another dimension where there is one."""
    e, code = low.elements, low.code
    shape, axis, reverse = op.operands[0].type.shape, op.int("axis"), op.int("reverse", 0)
    rest = [d for d in range(len(shape)) if d != axis]
    dests = [low.allocate(r.type.elem, r.type.shape) for r in op.results]
    lane = max(rest, key=lambda d: (shape[d], d), default=None)
    width, outer = min(shape[lane], low.target.lanes(4)) if rest else 1, e.width
    with ExitStack() as loops:
        at = {}
        for d in rest:
            step = width if d == lane else 1
            here = const("index", 0) if shape[d] == step else index(loops.enter_context(code.loop(shape[d], step)).iv)
            at[d] = lanes(here) if d == lane and width > 1 else here
        e.width = width

        def place(i):
            i = e.add(const("index", shape[axis] - 1), i, -1) if reverse else i
            return tuple(i if d == axis else at[d] for d in range(len(shape)))

        def write(i, values):
            for dest, v in zip(dests, values, strict=True):
                e.store(dest.pointer(e, place(i)), v._replace(elem=dest.stored), TRUE)

        first = [e.at(v, place(const("index", 0))) for v in op.operands]
        write(const("index", 0), first)
        if shape[axis] > 1:
            with code.loop(shape[axis] - 1, 1, [_register(e, v, width) for v in first]) as loop:
                held = [
                    e.wrap(v.elem, p, loop.depth, width if width > 1 else 0)
                    for v, p in zip(first, loop.phi, strict=True)
                ]
                i = index(loop.iv)._replace(const=1)
                new = combine(e, op, held, [e.at(v, place(i)) for v in op.operands])
                write(i, new)
                loop.next = [_register(e, v, width)[1] for v in new]
    e.width = outer
    for dest, result in zip(dests, op.results, strict=True):
        e.bound[result] = dest
