"""What a counted loop carries from turn to turn."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

from . import carrying, ir
from .elements import PURE, Buffer, Fixed, Moving
from .plan import SHAPE
from .values import REG, SIZE, Aff, Ptr, const


@dataclass
class Carried:
    """A loop-carried value: a scalar, a moving integer/pointer tensor, or a tensor in a register or in memory."""

    value: ir.Value  # the body's argument
    first: ir.Value
    last: ir.Value  # what the body yields
    step: ir.Value | None = None  # scalar that a moving tensor advances by
    lanes: int = 0  # of the register
    buffers: tuple[Buffer, ...] = ()  # two that swap, or one that is updated in place
    spare: Buffer | None = None  # where the next turn's value goes


def moving_step(argument: ir.Value, last: ir.Value) -> ir.Value | None:
    """The scalar s if the loop's body turns the tensor `argument` into `argument + s`."""
    op = last.op
    if op is None or op.name not in ("tt.addptr", "arith.addi") or argument not in op.operands:
        return None
    by = op.operands[1] if op.operands[0] is argument else op.operands[0]
    while by.op and by.op.name == "tt.broadcast":
        by = by.op.operands[0]
    if by.op and by.op.name in ("tt.splat", "arith.constant"):
        return by
    return None


def _elementwise(argument: ir.Value, last: ir.Value) -> bool:
    """Whether every use of `argument` goes, index by index, into `last` alone: the new value may then overwrite the
    old."""
    for user in argument.users:
        if user.name == "tt.dot":
            if user.result is not last or argument in user.operands[:2] or len(last.users) != 1:
                return False
        elif user.name not in PURE or user.name in SHAPE or user.block is not last.op.block:
            return False
        elif user.result is last:
            if len(last.users) != 1:
                return False
        elif not _elementwise(user.result, last):
            return False
    return bool(argument.users)


class ForLoop:
    """What `scf.for` carries from turn to turn, as LLVM phis. Also used by the fused matrix product."""

    def __init__(self, low, op: ir.Op, skip: tuple[ir.Value, ...] = ()):
        self.low, self.op = low, op
        body = op.body
        self.lanes = carrying.width(low, op)
        self.carried: list[Carried] = []
        for first, argument, last in zip(op.operands[3:], body.args[1:], body.ops[-1].operands, strict=True):
            item = Carried(argument, first, last)
            if argument not in skip:
                if argument.type.rank and not argument.type.is_float:
                    item.step = moving_step(argument, last)
                if argument.type.rank and self.lanes:
                    item.lanes = self.lanes
                elif argument.type.rank and item.step is None:
                    one = last.op is not None and last.op.block is body and _elementwise(argument, last)
                    item.buffers = tuple(
                        low.allocate(argument.type.elem, argument.type.shape) for _ in range(1 if one else 2)
                    )
                self.carried.append(item)

    def bounds(self) -> tuple[str, str, str, str]:
        values = [self.low.elements.at(v) for v in self.op.operands[:3]]
        return REG[values[0].elem], *(self.low.elements.scalar(v)[0] for v in values)

    def phis(self) -> list[tuple[str, str]]:
        low, e, out = self.low, self.low.elements, []
        for c in self.carried:
            if c.buffers:
                low.fill(c.buffers[0], c.first)
                out += [("ptr", e.address(b.base)[0]) for b in c.buffers if len(c.buffers) == 2]
            elif c.lanes:
                out.append((e.typed(c.value.type.elem, c.lanes), self._register(c.first)))
            elif c.step:
                out.append(("i64" if c.value.type.elem == "ptr" else REG[c.value.type.elem], "0"))
            else:
                out.append((REG[c.value.type.elem], e.scalar(e.at(c.first))[0]))
        return out

    def bind(self, ssa: str, phi: list[str], depth: int, values: list[ir.Value], counter: bool = True):
        """Gives the body's arguments (or, after the loop, its results) their values."""
        e, at = self.low.elements, iter(phi)
        if counter:
            e.bound[self.op.body.args[0]] = Fixed(Aff(self.op.body.args[0].type.elem, ((depth, ssa),), (), 0, 0))
        for c, value in zip(self.carried, values, strict=True):
            elem = value.type.elem
            if len(c.buffers) == 1:
                e.bound[value] = c.spare = c.buffers[0]
            elif c.buffers:
                current, other = next(at), next(at)
                c.spare = replace(c.buffers[1], base=Ptr(other, depth, const("i64", 0)))
                e.bound[value] = Buffer(
                    Ptr(current, depth, const("i64", 0)), elem, value.type.shape, c.buffers[0].strides
                )
            elif c.lanes:
                e.bound[value] = Fixed(e.wrap(elem, next(at), depth, c.lanes))
            elif c.step:
                e.bound[value] = Moving(c.first, Aff("i64" if elem == "ptr" else elem, ((depth, next(at)),), (), 0, 0))
            else:
                e.bound[value] = Fixed(e.wrap(elem, next(at), depth, 0))

    @contextmanager
    def _in_registers(self):
        """What is written inside works on whole tensors that are carried in registers."""
        e, outer = self.low.elements, self.low.elements.width
        e.width = self.lanes
        yield e
        e.width = outer

    def _register(self, value: ir.Value) -> str:
        with self._in_registers() as e:
            return e.vector(e.at(value, carrying.place(value.type)))[0]

    def store(self, results: list[ir.Value]):
        """Writes what was carried in registers to memory, where any nest can read it."""
        with self._in_registers() as e:
            for value in results:
                if value.type.rank:
                    dest, at = self.low.allocate(value.type.elem, value.type.shape), carrying.place(value.type)
                    dest.store(e, at, e.at(value, at))
                    e.bound[value] = dest

    def arguments(self) -> list[ir.Value]:
        return [c.value for c in self.carried]

    def aim(self):
        """Values that the body yields are best computed right into the buffer of the next turn."""
        for c in self.carried:
            if c.buffers and c.last.op and c.last.op.block is self.op.body and c.last.users == [self.op.body.ops[-1]]:
                self.low.destinations[c.last] = c.spare

    def advance(self, phi: list[str], depth: int) -> list[str]:
        """The values for the next turn, computed at the end of the body."""
        low, e, out, at = self.low, self.low.elements, [], iter(phi)
        for c in self.carried:
            if c.buffers:
                held = e.bound.get(c.last)
                if not (isinstance(held, Buffer) and held.base == c.spare.base):
                    low.fill(c.spare, c.last)
                if len(c.buffers) == 2:
                    current, other = next(at), next(at)
                    out += [other, current]
            elif c.lanes:
                next(at)
                out.append(self._register(c.last))
            elif c.step:
                offset = Aff("i64" if c.value.type.elem == "ptr" else c.value.type.elem, ((depth, next(at)),), (), 0, 0)
                by = e.at(c.step, (const("index", 0),) * c.step.type.rank)
                if c.value.type.elem == "ptr":
                    by = e.mul(e.cast(by, "i64"), const("i64", SIZE[c.value.type.pointee]))
                out.append(e.scalar(e.add(offset, by))[0])
            else:
                next(at)
                out.append(e.scalar(e.at(c.last))[0])
        return out
