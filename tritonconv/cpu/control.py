"""Control flow other than counted loops: while loops, early returns and the jumps that they become.

Where control comes together from several places, values are handed over through scratch memory; a while loop's scalars
in registers.
"""

from __future__ import annotations

from . import carrying, interchange, ir
from .code import Level
from .elements import Buffer, Fixed
from .loops import ForLoop
from .values import REG


def place_blocks(low, blocks: list[ir.Block]):
    """A body: one block, or several where it returns early."""
    if len(blocks) == 1:
        return low.block(blocks[0])
    code, e, outer = low.code, low.elements, (low.labels, low.doors)
    low.labels = {b.label: code.name("bb") for b in blocks}
    low.doors = {b.label: [low.allocate(v.type.elem, v.type.shape or ()) for v in b.args] for b in blocks[1:]}
    for i, block in enumerate(blocks):
        if i:
            code.start(low.labels[block.label])
            code.top.known.clear()  # what the last block computed does not dominate this one
            code.top.memo.clear()
            for value, door in zip(block.args, low.doors[block.label], strict=True):
                e.bound[value] = door if value.type.rank else Fixed(door.at(e, ()))
        low.block(block)
    low.labels, low.doors = outer


def lower_return(low, op: ir.Op):
    low.code.goto(low.end)


def lower_jump(low, op: ir.Op):
    e, conditional = low.elements, op.name == "cf.cond_br"
    values = iter(op.operands[conditional:])
    for successor in op.successors:
        for door in low.doors[successor]:
            value = next(values)
            low.fill(door, value)
    condition = f"i1 {e.scalar(e.at(op.operands[0]))[0]}, " if conditional else ""
    low.code.do(f"br {condition}{', '.join(f'label {low.labels[s]}' for s in op.successors)}")


def lower_while(low, op: ir.Op):
    """Scalars are carried in registers. A tensor has two buffers: one that the next test reads, one for the body."""
    e, code = low.elements, low.code
    head, body, done = code.name("head"), code.name("body"), code.name("done")
    before, after = op.regions[0][0], op.regions[1][0]

    def buffers(values: list[ir.Value]) -> list[Buffer | None]:
        return [low.allocate(v.type.elem, v.type.shape) if v.type.rank else None for v in values]

    def hand_over(values: list[ir.Value], dests: list[Buffer | None]) -> list[str]:
        """Fills the tensors' buffers; the scalars' registers."""
        for value, dest in zip(values, dests, strict=True):
            if dest:
                low.fill(dest, value)
        return [e.scalar(e.at(v))[0] for v, dest in zip(values, dests, strict=True) if not dest]

    def receive(values: list[ir.Value], sources: list[Buffer | None], registers: list[str], depth: int):
        scalars = iter(registers)
        for value, source in zip(values, sources, strict=True):
            e.bound[value] = source or Fixed(e.wrap(value.type.elem, next(scalars), depth, 0))

    tested, passed = buffers(op.operands), buffers(op.results)
    first = hand_over(op.operands, tested)
    types = [REG[v.type.elem] for v in op.operands if not v.type.rank]
    phis = [(ty, ssa, code.name("phi")) for ty, ssa in zip(types, first, strict=True)]
    level = code.push(head)
    with low.nested():
        receive(before.args, tested, [ssa for _, _, ssa in phis], code.depth)
        low.block(before)
        condition, *out = before.ops[-1].operands
        registers = hand_over(out, passed)
        code.do(f"br i1 {e.scalar(e.at(condition))[0]}, label {body}, label {done}")
        code.start(body)
        receive(after.args, passed, registers, code.depth)
        low.block(after)
        nexts = hand_over(after.ops[-1].operands, tested)
    code.pop()
    entry = code.top.label
    code.goto(head)
    code.start(head)
    for (ty, start, ssa), new in zip(phis, nexts, strict=True):
        code.do(f"{ssa} = phi {ty} [ {start}, {entry} ], [ {new}, {level.label} ]")
    code.top.lines += level.lines
    code.goto(head)
    code.start(done)
    receive(op.results, passed, registers, code.depth)


def lower_assert(low, op):
    """Triton's front end leaves assertions out unless it compiles in debug mode."""
    condition = op.operands[0]
    low.nest(
        condition.type.shape or (), lambda idx: low.elements.checks.assertion(op, low.elements.at(condition, idx)), "i1"
    )


def lower_nothing(low, op):
    """One thread runs a program in order: there is nothing to wait for."""


def lower_if(low, op):
    e, code = low.elements, low.code
    condition = e.at(op.operands[0])
    dests = [low.allocate(r.type.elem, r.type.shape) if r.type.rank else None for r in op.results]
    arms: list[Level] = []
    scalars: list[list[str]] = []
    for blocks in op.regions:
        with code.arm() as arm:
            if blocks:
                with low.nested():
                    low.block(blocks[0])
                    values = blocks[0].ops[-1].operands
                    for value, dest in zip(values, dests, strict=True):
                        if dest:
                            low.fill(dest, value)
                    scalars.append([e.scalar(e.at(v))[0] for v in values if not v.type.rank])
        arms.append(arm)
    ends = code.branch(condition.ssa, *arms)
    position = 0
    for result, dest in zip(op.results, dests, strict=True):
        if dest:
            e.bound[result] = dest
            continue
        pair = ", ".join(f"[ {s[position]}, {end} ]" for s, end in zip(scalars, ends, strict=True))
        ssa = code.op(f"phi {REG[result.type.elem]} {pair}")
        e.bound[result] = Fixed(e.wrap(result.type.elem, ssa, code.depth, 0))
        position += 1


def lower_terminator(low, op):
    """Read by the operation whose body it ends."""


def lower_for(low, op):
    if interchange.fused_loop(low, op):
        return
    code, used = low.code, low.used
    state = ForLoop(low, op)
    held = low.used
    ty, first, last, step = state.bounds()
    with code.while_loop(ty, first, last, step, state.phis()) as loop:
        state.bind(loop.ssa, loop.phi, loop.depth, state.arguments())
        state.aim()
        outer, low.elements.region = low.elements.region, loop.depth
        low.block(op.body)
        loop.next = state.advance(loop.phi, loop.depth)
        low.elements.region = outer
    state.bind("", loop.result, code.depth, op.results, counter=False)
    low.used = held if op.results else used
    if state.lanes and not carrying.width(low, op.block.parent):
        state.store(op.results)
