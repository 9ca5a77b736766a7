"""What holds a tensor, and how its elements are asked for.

`Elements.at(value, idx)` is the whole of the lowering's data flow: a tensor is never built, its elements are asked for
by whichever loop nest needs them. `idx` holds one integer (constant, loop variable, or lanes) per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from . import ir, mathlib
from .access import LINE, Access
from .code import Code
from .errors import UnsupportedOp
from .target import Target
from .values import REG, SIZE, TRUE, Aff, Ptr, Val, const, is_uniform

Index = tuple[Val, ...]
PURE: dict[str, Callable] = {}  # operation → function(elements, op, idx) giving its (only) result


def pure(*names):
    def register(function):
        PURE.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass(eq=False)
class Fixed:
    """A value already at hand (an argument, a scalar, a lane of a reduction): the same at every index."""

    value: Val

    def at(self, elements: Elements, idx: Index) -> Val:
        return self.value


@dataclass(eq=False)
class Buffer:
    """A tensor kept in scratch memory, row-major; half types are kept as float."""

    base: Ptr
    elem: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    def pointer(self, elements: Elements, idx: Index) -> Ptr:
        p, size = self.base, SIZE[self.stored]
        for i, stride in zip(idx, self.strides, strict=True):
            p = elements.advance(p, i, size * stride)
        return p

    @property
    def stored(self) -> str:
        return "f32" if self.elem in ("f16", "bf16") else self.elem

    def at(self, elements: Elements, idx: Index) -> Val:
        v = elements.load(self.pointer(elements, idx), self.stored, TRUE, None, elements.region)
        return v._replace(elem=self.elem) if v.elem != self.elem else v

    def store(self, elements: Elements, idx: Index, value: Val):
        elements.store(self.pointer(elements, idx), value._replace(elem=self.stored), TRUE)


@dataclass(eq=False)
class Panels(Buffer):
    """A matrix [k, n] in panels of a few columns, [n / columns, k, columns]: a product reads one panel from end to
    end."""

    columns: int = 1

    def pointer(self, elements: Elements, idx: Index) -> Ptr:
        k, n = idx
        panel = elements.mul(quotient(elements, n, self.columns), const("index", self.shape[0] * self.columns))
        at = elements.add(panel, elements.mul(k, const("index", self.columns)))
        return elements.advance(self.base, elements.add(at, remainder(elements, n, self.columns)), SIZE[self.stored])


@dataclass(eq=False)
class Moving:
    """A loop-carried integer or pointer tensor that advances by the same amount everywhere: initial value + offset."""

    initial: ir.Value
    offset: Val  # scalar, of the tensor's integer type, or bytes for pointers

    def at(self, elements: Elements, idx: Index) -> Val:
        start = elements.at(self.initial, idx)
        if isinstance(start, Ptr):
            return start._replace(off=elements.add(start.off, self.offset))
        return elements.add(start, self.offset)


@dataclass(eq=False)
class Recorded:
    """A pure value that is computed where it is asked for, and then written to a buffer."""

    value: ir.Value
    buffer: Buffer

    def at(self, elements: Elements, idx: Index) -> Val:
        op = self.value.op
        result = PURE[op.name](elements, op, idx)
        self.buffer.store(elements, idx, result)
        return result


class Elements(Access):
    def __init__(self, code: Code, target: Target, fuse: bool):
        super().__init__(code, target)
        self.bound: dict[ir.Value, Fixed | Buffer | Moving] = {}
        self.region = 0  # memory is read no further out than this level
        self.settled: set[ir.Value] = set()  # masks known to hold wherever they are asked for
        self.contract = "contract " if fuse else ""
        self.checks = None  # in debug mode, what writes the bounds checks

    def at(self, value: ir.Value, idx: Index = ()) -> Val:
        key = (value, idx) if all(map(is_uniform, idx)) else (value, idx, self.width)
        for level in reversed(self.code.levels):
            found = level.memo.get(key)
            if found is not None:
                return found
        holder = self.bound.get(value)
        if holder is not None:
            result = holder.at(self, idx)
        else:
            op = value.op
            rule = PURE.get(op.name) if op else None
            if rule is None:
                raise UnsupportedOp(op or value.type)
            result = rule(self, op, idx)
            if not idx and isinstance(result, Aff) and len(result.terms) + len(result.ivs) > 1:
                result = self.wrap(result.elem, *self.scalar(result), 0)  # scalars wrap exactly as written
        self.code.top.memo[key] = result
        return result

    def checked(self, op: ir.Op, pointer: Ptr, mask: Val, depth: int) -> Val:
        """The mask of an access on the level `depth` or a deeper one; in debug mode, less what is out of bounds."""
        return mask if self.checks is None else self.checks.access(op, pointer, mask, depth)

    def read(self, op: ir.Op, idx: Index, mask: Val) -> Val:
        """What the load `op` gives at `idx`. A mask may rest on an assumption, so nothing masked is read before it is
        checked."""
        p = self.pointer(self.at(op.operands[0], idx))
        other = self.at(op.operands[2], idx) if len(op.operands) > 2 else None
        depth = max(self.region, self.floor) if len(op.operands) > 1 else self.region
        return self.load(p, op.result.type.elem, self.checked(op, p, mask, depth), other, depth)

    def prefetch(self, op: ir.Op, idx: Index, cache: int) -> None:
        """Has a cache (1 or 2) ask for what the load `op` reads at `idx`, where that is a run of memory; it need not be
        there."""
        p, size = self.pointer(self.at(op.operands[0], idx)), SIZE[op.result.type.elem]
        if isinstance(p.off, Aff) and p.off.step == size:
            function = self.code.intrinsic("llvm.prefetch.p0", "void", ("ptr", "i32", "i32", "i32"))
            for at in range(0, max(1, self.width) * size, LINE):
                line = self.address(self.advance(p, const("i64", at), 1))[0]
                self.code.do(f"call void {function}(ptr {line}, i32 0, i32 {4 - cache}, i32 1)")

    def args(self, op: ir.Op, idx: Index) -> list[Val]:
        return [self.at(v, idx) for v in op.operands]

    # ---- registers ------------------------------------------------------------------------------------------------

    def binary(self, text: str, a: Val, b: Val, elem: str | None = None) -> Val:
        """`text` has {} for the type; operands follow."""
        x, y, depth, width = self.pair(a, b)
        ssa = self.code.pure(depth, f"{text.format(self.typed(a.elem, width))} {x}, {y}")
        return self.rounded(self.wrap(elem or a.elem, ssa, depth, width))

    def unary(self, v: Val) -> tuple[str, int, int]:
        if is_uniform(v):
            return *self.scalar(v), 0
        return *self.vector(v), self.width

    def apply(self, function: str, *operands: Val, elem: str | None = None) -> Val:
        """An LLVM intrinsic or library function on equal types; vectors for `llvm.*`, lane by lane for a library's."""
        width = 0 if all(is_uniform(v) for v in operands) else self.width
        regs = [self.vector(v) if width else self.scalar(v) for v in operands]
        depth, base = max(d for _, d in regs), REG[operands[0].elem]
        ty = f"<{width} x {base}>" if width else base
        suffix = {"float": "f32", "double": "f64"}.get(base, base)
        if function.startswith("llvm."):
            name = f"{function}.v{width}{suffix}" if width else f"{function}.{suffix}"
            ssa = self.code.call(depth, name, ty, *((ty, s) for s, _ in regs))
        elif not width:
            ssa = self.code.call(
                depth, function + ("f" if base == "float" else ""), base, *((base, s) for s, _ in regs)
            )
        else:
            ssa, lane_fn = "poison", function + ("f" if base == "float" else "")
            for lane in range(width):
                parts = [self.code.pure(depth, f"extractelement {ty} {s}, i64 {lane}") for s, _ in regs]
                one = self.code.call(depth, lane_fn, base, *((base, p) for p in parts))
                ssa = self.code.pure(depth, f"insertelement {ty} {ssa}, {base} {one}, i64 {lane}")
        return self.rounded(self.wrap(elem or operands[0].elem, ssa, depth, width))

    def rounded(self, v: Val) -> Val:
        """Half types are held as float: after an operation, round to what the type can hold."""
        if v.elem not in ("f16", "bf16"):
            return v
        return mathlib.round_to(self, v, v.elem)

    def any(self, mask: Val) -> str:
        """Whether a mask (a vector) holds in one of its lanes (i1)."""
        (ssa, depth), name = self.vector(mask), f"llvm.vector.reduce.or.v{self.width}i1"
        return self.code.call(depth, name, "i1", (self.typed("i1", self.width), ssa))

    def negated(self, v: Val) -> Val:
        ssa, depth, width = self.unary(v)
        return self.wrap(v.elem, self.code.pure(depth, f"fneg {self.typed(v.elem, width)} {ssa}"), depth, width)

    def convert(self, text: str, v: Val, elem: str) -> Val:
        """A conversion instruction, `text` to another element type."""
        ssa, depth, width = self.unary(v)
        cast = f"{text} {self.typed(v.elem, width)} {ssa} to {self.typed(elem, width)}"
        return self.wrap(elem, self.code.pure(depth, cast), depth, width)


def high_low(e: Elements, v: Aff, n: int) -> tuple[Aff, Aff] | None:
    """v = n * high + low with 0 <= low < n in every lane, where the coefficients (powers of two) show it."""
    if v.terms:
        return None
    high = v._replace(ivs=tuple((iv, c // n) for iv, c in v.ivs if c % n == 0), const=v.const // n, step=0)
    low = v._replace(ivs=tuple((iv, c) for iv, c in v.ivs if c % n), const=v.const % n)
    reach = low.const + sum((iv.extent - 1) * c for iv, c in low.ivs) + (e.width - 1) * v.step
    return (high, low) if reach < n else None


def quotient(e: Elements, v: Val, n: int) -> Val:
    """v // n for an index (never negative)."""
    if isinstance(v, Aff) and (parts := high_low(e, v, n)):
        return parts[0]
    first = v._replace(step=0) if _together(e, v, n) else v
    return e.binary("udiv {}", first, const("index", n))


def remainder(e: Elements, v: Val, n: int) -> Val:
    if isinstance(v, Aff) and (parts := high_low(e, v, n)):
        return parts[1]
    if _together(e, v, n):
        return e.binary("urem {}", v._replace(step=0), const("index", n))._replace(step=v.step)
    return e.binary("urem {}", v, const("index", n))


def _together(e: Elements, v: Val, n: int) -> bool:
    """Whether all lanes lie between two multiples of n, as the coefficients show."""
    if not isinstance(v, Aff) or v.terms or v.step < 0:
        return False
    return (e.width - 1) * v.step < math.gcd(n, v.const, *(c for _, c in v.ivs))
