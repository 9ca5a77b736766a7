"""Debug mode, compiled: every load, store and atomic is checked against the memory of the tensor that its pointer
comes from.

A check is one more mask: an access outside is not made, and the first of a launch is recorded. A pointer that does not
come from exactly one argument (loaded from memory, made from a number) is not checked.

A checked kernel takes, after its own arguments, the start and the size in bytes of each pointer's memory, then a record
of three words: the number of the check that failed (from 1; 0 is none), the byte at fault, the program.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import ir
from .elements import Elements
from .provenance import Provenance
from .values import SIZE, TRUE, Aff, Ptr, Val, Vec, const

_NOTHING = (1 << 63) - 1  # no lane is at fault


@dataclass(frozen=True)
class Check:
    """One place in a kernel where something may be found wrong."""

    what: str  # "load", "store", "atomic" or "assert"
    subject: str  # the argument's name, or the assertion's message
    pointer: int  # the argument's place among the pointers
    size: int  # of the access, in bytes
    line: str


class Checks:
    """Writes the checks of one kernel. `program` is set by the lowering: the program's number in the grid."""

    def __init__(self, function: ir.Op, elements: Elements):
        self.e, self.provenance = elements, Provenance(function)
        self.pointers = [v for v in function.body.args if v.type.elem == "ptr"]
        self.made: dict[Check, int] = {}  # and its number
        self.program = ""
        first = len(function.body.args)
        self.record = self._argument(first + 2 * len(self.pointers))
        self.memory = {
            v: tuple(self._word(self._argument(first + 2 * i + j)) for j in (0, 1)) for i, v in enumerate(self.pointers)
        }
        elements.code.declared["outside"] = _OUTSIDE

    @property
    def arguments(self) -> list[ir.Type]:
        """What the kernel takes after its own arguments."""
        return [ir.Type("i64")] * (2 * len(self.pointers) + 3)

    def _argument(self, slot: int) -> str:
        return self.e.code.pure(0, f"getelementptr i8, ptr %arguments, i64 {8 * slot}")

    def _word(self, address: str) -> Aff:
        return Aff("i64", ((0, self.e.code.op(f"load i64, ptr {address}, align 8", 0)),), (), 0, 0)

    def access(self, op: ir.Op, pointer: Ptr, mask: Val, depth: int) -> Val:
        """`mask`, less what would reach outside of the pointer's memory. The check is written no further out than
        `depth`."""
        argument = self.provenance.argument(op.operands[0])
        if argument is None:
            return mask
        e, size = self.e, SIZE.get(op.operands[0].type.pointee, 8)
        start, room = self.memory[argument]
        offset = e.add(e.integer(pointer), start, -1)
        ends = e.apply("llvm.usub.sat", room, const("i64", size - 1))  # where an access can begin
        inside = e.binary("icmp ult {}", offset, ends, "i1")
        what = op.name.removeprefix("tt.").split("_")[0]
        check = Check(what, argument.name[1:], self.pointers.index(argument), size, op.loc)
        self._report(check, mask, inside, offset, depth)
        return inside if mask == TRUE else e.binary("and {}", mask, inside)

    def assertion(self, op: ir.Op, condition: Val):
        message = op.attrs["message"].strip('"')
        self._report(Check("assert", message, 0, 0, op.loc), TRUE, condition, const("i64", 0), self.e.code.depth)

    def _report(self, check: Check, mask: Val, good: Val, offset: Val, depth: int):
        """Records the lowest offset of the lanes that are on and not good."""
        e, code = self.e, self.e.code
        bad = e.binary("and {}", mask, e.binary("xor {}", good, TRUE))
        worst = e.select(bad, offset, const("i64", _NOTHING))
        depth = max(worst.depth, depth)
        if isinstance(worst, Vec):
            depth = max(depth, e.floor)
            name, ty = f"llvm.vector.reduce.smin.v{worst.width}i64", f"<{worst.width} x i64>"
            ssa = code.call(worst.depth, name, "i64", (ty, worst.ssa))
        else:
            ssa = e.scalar(worst)[0]
        number = self.made.setdefault(check, len(self.made) + 1)
        code.do(f"call void @outside(ptr {self.record}, i64 {ssa}, i64 {self.program}, i64 {number})", depth)


_OUTSIDE = f"""define internal void @outside(ptr %record, i64 %offset, i64 %program, i64 %check) cold noinline {{
  %fine = icmp eq i64 %offset, {_NOTHING}
  br i1 %fine, label %done, label %wrong
wrong:
  %old = cmpxchg ptr %record, i64 0, i64 %check monotonic monotonic
  %first = extractvalue {{ i64, i1 }} %old, 1
  br i1 %first, label %mine, label %done
mine:
  %p1 = getelementptr i8, ptr %record, i64 8
  store i64 %offset, ptr %p1
  %p2 = getelementptr i8, ptr %record, i64 16
  store i64 %program, ptr %p2
  br label %done
done:
  ret void
}}"""
