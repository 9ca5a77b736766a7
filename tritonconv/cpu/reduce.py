"""Reductions and scans with any combine region, on whole vectors."""

from __future__ import annotations

from contextlib import ExitStack

from . import ahead, tails
from .code import Code, Iv
from .elements import Elements, Fixed
from .values import REG, SIZE, TRUE, Val, Vec, const, index, is_uniform, lanes


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


def _running(low, op, n: int, step: int, width: int, place) -> list:
    """Combines what is at the indices place(0), place(step), …, place(n - step)."""
    e, code = low.elements, low.code
    elems = [v.type.elem for v in op.operands]

    def held(registers, depth):
        return [e.wrap(t, r, depth, width if width > 1 else 0) for t, r in zip(elems, registers, strict=True)]

    def read(idx):
        return [e.at(v, idx) for v in op.operands]

    def start():
        return [_register(e, v, width) for v in read(place(const("index", 0)))]

    if n == step:
        return held([ssa for _, ssa in low.speculate(start)], code.depth)
    first = start()
    beside = low.recording.get(op, ())  # what the nest writes by the way
    with code.loop(n - step, step, first) as loop:
        at = index(loop.iv)._replace(const=step)
        idx = place(at)
        over = tails.over(e, op.operands, idx, loop.iv) if step > 1 else None

        def turn():
            new = [_register(e, v, width) for v in combine(e, op, held(loop.phi, loop.depth), read(idx))]
            more = "true" if over is None or e.assumed is not None else _more(code, over, new, loop.phi)
            ahead.ask(low, op, idx)
            return [*new, *(_register(e, e.at(value, idx), width) for value, _ in beside), ("i1", more)]

        *last, loop.more = (ssa for _, ssa in low.speculate(turn))
        loop.next = last[: len(first)]
    if over and beside:
        begin = code.pure(code.depth, f"add i64 {loop.ssa}, 2")
        with code.while_loop("i64", begin, str(n // step), "1") as rest:
            idx = place(index(Iv(rest.ssa, rest.depth, n // step, step)))
            for (_, buffer), ssa in zip(beside, last[len(first) :], strict=True):
                v = e.wrap(buffer.stored, ssa, code.depth, width)
                e.store(buffer.pointer(e, idx), v, TRUE)
    return held(loop.result, code.depth)


def _more(code: Code, over: str, new: list[tuple[str, str]], old: list[str]) -> str:
    """Whether there is more to combine (i1): the axis is not over, or its last turn has changed the result."""
    done = over
    for (ty, a), b in zip(new, old, strict=True):
        bits = ty.replace("float", "i32").replace("double", "i64")
        a, b = (code.op(f"bitcast {ty} {v} to {bits}") for v in (a, b))
        lanes = int(ty[1:].split()[0])
        equal, every = code.op(f"icmp eq {bits} {a}, {b}"), f"llvm.vector.reduce.and.v{lanes}i1"
        same = code.call(code.depth, every, "i1", (f"<{lanes} x i1>", equal))
        done = code.op(f"and i1 {done}, {same}")
    return code.op(f"xor i1 {done}, true")


def _across(e: Elements, op, acc: list, width: int) -> list:
    """Combines the lanes of vectors: halves, then quarters … then lane 0."""
    half = width // 2
    while half:
        parts = []
        for start in (0, half):
            picks = ", ".join(f"i32 {start + i}" for i in range(half))
            for v in acc:
                ssa, depth = e.vector(v, 2 * half)
                ty = f"<{2 * half} x {REG[v.elem]}>"
                part = e.code.pure(depth, f"shufflevector {ty} {ssa}, {ty} poison, <{half} x i32> <{picks}>")
                parts.append(Vec(v.elem, part, depth, half))
        e.width = half
        acc = combine(e, op, parts[: len(acc)], parts[len(acc) :])
        half //= 2
    lane0 = []
    for v in acc:
        if is_uniform(v):
            lane0.append(v)
        else:
            ssa = e.code.pure(v.depth, f"extractelement <1 x {REG[v.elem]}> {v.ssa}, i64 0")
            lane0.append(e.wrap(v.elem, ssa, v.depth, 0))
    return lane0


def _beside(low, loops: ExitStack, shape: tuple[int, ...], axis: int, lane: int, width: int) -> dict[int, Val]:
    """The indices of loops over all dimensions but the axis, of which `lane`, if it is one, is in lanes."""
    at = {}
    for d in range(len(shape)):
        if d != axis:
            here = low.turns(loops, shape[d], width if d == lane else 1)
            at[d] = lanes(here) if d == lane and width > 1 else here
    low.elements.width = width
    return at


def lower_reduce(low, op):
    e = low.elements
    shape, axis = op.operands[0].type.shape, op.int("axis")
    rest = [d for d in range(len(shape)) if d != axis]
    size = max(4, *(SIZE[v.type.elem] for v in op.operands))
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
        at = _beside(low, loops, shape, axis, lane, width)

        def place(i):
            i = lanes(i) if axis == lane and width > 1 else i
            return tuple(i if d == axis else at[d] for d in range(len(shape)))

        acc = _running(low, op, shape[axis], width if axis == lane else 1, width, place)
        if axis == lane:
            if width > 1:
                acc = _across(e, op, acc, width)
            e.width = 1
        idx = tuple(at[d] for d in rest)
        for dest, value, result in zip(dests, acc, op.results, strict=True):
            if dest:
                dest.store(e, idx, value)
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
                dest.store(e, place, value)

        low.nest(rest, body, max(dests, key=lambda dest: SIZE[dest.elem]).elem, lane - (axis < lane))

    row(const("index", 0), more=False)
    if shape[axis] > 1:
        with code.loop(shape[axis] - 1) as loop:
            row(index(loop.iv)._replace(const=1), more=True)
    for dest, result in zip(dests, op.results, strict=True):
        e.bound[result] = dest


def lower_scan(low, op):
    """A running combination along the axis, in lanes over another dimension where there is one."""
    e, code = low.elements, low.code
    shape, axis, reverse = op.operands[0].type.shape, op.int("axis"), op.int("reverse", 0)
    rest = [d for d in range(len(shape)) if d != axis]
    dests = [low.allocate(r.type.elem, r.type.shape) for r in op.results]
    lane = max(rest, key=lambda d: (shape[d], d), default=None)
    width, outer = min(shape[lane], low.target.lanes(4)) if rest else 1, e.width
    with ExitStack() as loops:
        at = _beside(low, loops, shape, axis, lane, width)

        def place(i):
            i = e.add(const("index", shape[axis] - 1), i, -1) if reverse else i
            return tuple(i if d == axis else at[d] for d in range(len(shape)))

        def write(i, values):
            for dest, v in zip(dests, values, strict=True):
                dest.store(e, place(i), v)

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
