"""Control flow other than counted loops: while loops, early returns and the jumps that they become.

Where control comes together from several places, scalars and tensors alike are handed over through scratch memory, except in
the while loop's scalars.
"""

from __future__ import annotations

from . import ir
from .elements import Buffer, Fixed
from .values import REG


def place_blocks(low, blocks: list[ir.Block]):
    """The function's body: one block, or several where the kernel returns early."""
    if len(blocks) == 1:
        return low.block(blocks[0])
    code, e = low.code, low.elements
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


def lower_return(low, op: ir.Op):
    low.code.goto(low.end)


def lower_jump(low, op: ir.Op):
    e, conditional = low.elements, op.name == "cf.cond_br"
    values = iter(op.operands[conditional:])
    for successor in op.successors:
        for door in low.doors[successor]:
            value = next(values)
            low.fill(door, lambda idx, value=value: e.at(value, idx))
    condition = f"i1 {e.scalar(e.at(op.operands[0]))[0]}, " if conditional else ""
    low.code.do(f"br {condition}{', '.join(f'label {low.labels[s]}' for s in op.successors)}")


def lower_while(low, op: ir.Op):
    """Scalars are carried in registers. A tensor has two buffers: one that the next test reads, one that the body reads."""
    e, code = low.elements, low.code
    head, body, done = code.name("head"), code.name("body"), code.name("done")
    before, after = op.regions[0][0], op.regions[1][0]

    def buffers(values: list[ir.Value]) -> list[Buffer | None]:
        return [low.allocate(v.type.elem, v.type.shape) if v.type.rank else None for v in values]

    def hand_over(values: list[ir.Value], dests: list[Buffer | None]) -> list[str]:
        """Fills the tensors' buffers; the scalars' registers."""
        for value, dest in zip(values, dests, strict=True):
            if dest:
                low.fill(dest, lambda idx, value=value: e.at(value, idx))
        return [e.scalar(e.at(v))[0] for v, dest in zip(values, dests, strict=True) if not dest]

    def receive(values: list[ir.Value], sources: list[Buffer | None], registers: list[str], depth: int):
        scalars = iter(registers)
        for value, source in zip(values, sources, strict=True):
            e.bound[value] = source or Fixed(e.wrap(value.type.elem, next(scalars), depth, 0))

    tested, passed = buffers(op.operands), buffers(op.results)
    first = hand_over(op.operands, tested)
    phis = [(REG[v.type.elem], ssa, code.name("phi")) for v, ssa in zip([v for v in op.operands if not v.type.rank], first, strict=True)]
    used, level = low.used, code.push(head)
    outer, e.region = e.region, code.depth
    receive(before.args, tested, [ssa for _, _, ssa in phis], code.depth)
    low.block(before)
    condition, *out = before.ops[-1].operands
    registers = hand_over(out, passed)
    code.do(f"br i1 {e.scalar(e.at(condition))[0]}, label {body}, label {done}")
    code.start(body)
    receive(after.args, passed, registers, code.depth)
    low.block(after)
    nexts = hand_over(after.ops[-1].operands, tested)
    e.region, low.used = outer, used
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
