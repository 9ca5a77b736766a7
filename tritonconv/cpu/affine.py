"""Integer and pointer arithmetic on the abstract domain of `values.py`, and its way into LLVM registers."""

from __future__ import annotations

from .code import Code
from .values import REG, WIDTH, Aff, Ptr, Uni, Val, Vec, const, is_uniform

_I64 = "i64"


class Affine:
    """Arithmetic that keeps integers affine where it can; everything else becomes one register per lane vector."""

    def __init__(self, code: Code):
        self.code = code
        self.width = 1  # lanes of a Vec in the loop nest being written
        self.assumed: list[str] | None = None  # where it may assume, the conditions (i1) under which the code is right
        self.assume_depth = 0  # the level on which they are checked: they may not depend on a deeper one

    # ---- into registers -------------------------------------------------------------------------------------------

    def scalar(self, v: Val) -> tuple[str, int]:
        """(SSA name or literal, level) of a uniform value."""
        if isinstance(v, Uni):
            return v.ssa, v.depth
        if isinstance(v, Ptr):
            return self.address(v)
        ty, pure = REG[v.elem], self.code.pure
        parts = sorted([*v.terms, *((iv.depth, self._scaled(iv, c, ty)) for iv, c in v.ivs)])
        if not parts:
            return str(v.const), 0
        depth, acc = parts[0]
        if v.const:
            acc = pure(depth, f"add {ty} {acc}, {v.const}")
        for d, ssa in parts[1:]:
            depth, acc = d, pure(d, f"add {ty} {acc}, {ssa}")
        return acc, depth

    def _scaled(self, iv, coef: int, ty: str) -> str:
        ssa = iv.ssa
        if ty != _I64:
            ssa = self.code.pure(iv.depth, f"trunc i64 {ssa} to {ty}")
        bits = int(ty[1:])
        coef = (coef + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
        return ssa if coef == 1 else self.code.pure(iv.depth, f"mul {ty} {ssa}, {coef}")

    def vector(self, v: Val, width: int | None = None) -> tuple[str, int]:
        """(SSA name, level) of a value as a vector of `width` lanes."""
        if isinstance(v, Vec):
            return v.ssa, v.depth
        width = width or self.width
        pure = self.code.pure
        if isinstance(v, Ptr):
            if v.uniform:
                ssa, depth = self.address(v)
                return self.splat("ptr", ssa, depth, width), depth
            off, depth = self.vector(v.off, width)
            depth = max(depth, v.depth)
            return pure(depth, f"getelementptr i8, ptr {v.base}, <{width} x i64> {off}"), depth
        ty = REG[v.elem]
        if isinstance(v, Uni) or v.step == 0:
            ssa, depth = self.scalar(v)
            return self.splat(ty, ssa, depth, width), depth
        ramp = "<" + ", ".join(f"{ty} {const(v.elem, i * v.step).const}" for i in range(width)) + ">"
        base, depth = self.scalar(v._replace(step=0))
        if base == "0":
            return ramp, 0
        return pure(depth, f"add <{width} x {ty}> {self.splat(ty, base, depth, width)}, {ramp}"), depth

    def splat(self, ty: str, ssa: str, depth: int, width: int) -> str:
        if not ssa.startswith("%") and not ssa.startswith("@"):
            return "<" + ", ".join([f"{ty} {ssa}"] * width) + ">"
        one = self.code.pure(depth, f"insertelement <{width} x {ty}> poison, {ty} {ssa}, i64 0")
        return self.code.pure(
            depth, f"shufflevector <{width} x {ty}> {one}, <{width} x {ty}> poison, <{width} x i32> zeroinitializer"
        )

    def pair(self, a: Val, b: Val) -> tuple[str, str, int, int]:
        """Two operands brought to one shape: (ssa, ssa, level, width), width 0 for scalars."""
        if is_uniform(a) and is_uniform(b):
            (x, dx), (y, dy) = self.scalar(a), self.scalar(b)
            return x, y, max(dx, dy), 0
        (x, dx), (y, dy) = self.vector(a), self.vector(b)
        return x, y, max(dx, dy), self.width

    def wrap(self, elem: str, ssa: str, depth: int, width: int) -> Val:
        """A register as a value: integers come back as affine, so that further arithmetic on them can be."""
        if width:
            return Vec(elem, ssa, depth, width)
        if elem == "ptr":
            return Ptr(ssa, depth, const("i64", 0))
        if elem in WIDTH and elem != "i1":
            return Aff(elem, ((depth, ssa),), (), 0, 0)
        return Uni(elem, ssa, depth)

    def typed(self, elem: str, width: int) -> str:
        return f"<{width} x {REG[elem]}>" if width else REG[elem]

    # ---- affine arithmetic ----------------------------------------------------------------------------------------

    def add(self, a: Val, b: Val, sign: int = 1) -> Val:
        if not (isinstance(a, Aff) and isinstance(b, Aff)):
            x, y, depth, width = self.pair(a, b)
            ty = self.typed(a.elem, width)
            return self.wrap(
                a.elem, self.code.pure(depth, f"{'add' if sign > 0 else 'sub'} {ty} {x}, {y}"), depth, width
            )
        ty = REG[a.elem]
        terms = dict(a.terms)
        for d, ssa in b.terms:
            if d in terms:
                terms[d] = self.code.pure(d, f"{'add' if sign > 0 else 'sub'} {ty} {terms[d]}, {ssa}")
            else:
                terms[d] = ssa if sign > 0 else self.code.pure(d, f"sub {ty} 0, {ssa}")
        ivs = dict(a.ivs)
        for iv, c in b.ivs:
            ivs[iv] = ivs.get(iv, 0) + sign * c
        value = const(a.elem, a.const + sign * b.const).const
        return Aff(
            a.elem,
            tuple(sorted(terms.items())),
            tuple((i, c) for i, c in ivs.items() if c),
            value,
            a.step + sign * b.step,
        )

    def mul(self, a: Val, b: Val) -> Val:
        if isinstance(a, Aff) and isinstance(b, Aff):
            if a.is_const or (not b.is_const and a.uniform and (a.depth < b.depth or not b.uniform)):
                a, b = b, a
            if b.is_const:
                return self.scale(a, b.const)
            if b.uniform and a.uniform:
                return self._product(a, b)
        x, y, depth, width = self.pair(a, b)
        return self.wrap(a.elem, self.code.pure(depth, f"mul {self.typed(a.elem, width)} {x}, {y}"), depth, width)

    def scale(self, a: Aff, by: int) -> Aff:
        if by in (0, 1):
            return a if by else const(a.elem, 0)
        ty = REG[a.elem]
        terms = tuple((d, self.code.pure(d, f"mul {ty} {s}, {by}")) for d, s in a.terms)
        ivs = tuple((iv, c * by) for iv, c in a.ivs)
        return Aff(a.elem, terms, ivs, const(a.elem, a.const * by).const, a.step * by)

    def _product(self, a: Aff, b: Aff) -> Aff:
        """a * b, both uniform: distributed over a's terms, so that the outer part stays on the outer level."""
        ty, pure = REG[a.elem], self.code.pure
        y, dy = self.scalar(b)
        total = const(a.elem, 0)
        parts = [*a.terms, *((iv.depth, self._scaled(iv, c, ty)) for iv, c in a.ivs)]
        for d, ssa in parts:
            depth = max(d, dy)
            total = self.add(total, Aff(a.elem, ((depth, pure(depth, f"mul {ty} {ssa}, {y}")),), (), 0, 0))
        if a.const:
            ssa = y if a.const == 1 else pure(dy, f"mul {ty} {y}, {a.const}")
            total = self.add(total, Aff(a.elem, ((dy, ssa),), (), 0, 0))
        return total

    def cast(self, v: Val, elem: str, signed: bool = True) -> Val:
        """Integer to integer, exactly."""
        if v.elem == elem:
            return v
        old, new = WIDTH[v.elem], WIDTH[elem]
        if isinstance(v, Aff):
            if v.is_const:
                return const(elem, v.const if signed or new < old else v.const & ((1 << old) - 1))
            if new <= old or (self.fits(v) and (signed or self.bounds(v)[0] >= 0)):
                return self.distribute(v, elem)
            if v.step and self.may_assume(v):
                self.assume_unbroken(v, signed)
                return self.cast(v._replace(step=0), elem, signed)._replace(step=v.step)
        ssa, depth = self.scalar(v) if is_uniform(v) else self.vector(v)
        width = 0 if is_uniform(v) else self.width
        if old == new:
            return self.wrap(elem, ssa, depth, width)
        how = "trunc" if new < old else "sext" if signed else "zext"
        text = f"{how} {self.typed(v.elem, width)} {ssa} to {self.typed(elem, width)}"
        return self.wrap(elem, self.code.pure(depth, text), depth, width)

    def distribute(self, v: Aff, elem: str) -> Aff:
        """The sum of its parts, each truncated or sign-extended: right if the sum does not wrap, or is truncated."""
        src, dst = REG[v.elem], REG[elem]
        if src == dst:
            return v._replace(elem=elem)
        how = "trunc" if WIDTH[elem] < WIDTH[v.elem] else "sext"
        terms = tuple((d, self.code.pure(d, f"{how} {src} {s} to {dst}")) for d, s in v.terms)
        return Aff(elem, terms, v.ivs, const(elem, v.const).const, v.step)

    # ---- what is known of an affine value, and what may be assumed ------------------------------------------------

    def bounds(self, v: Aff) -> tuple[int, int]:
        """Least and greatest value of the loop variables' and lanes' part, had the integers no end."""
        spans = [(iv.extent - 1) * c for iv, c in v.ivs] + [(self.width - 1) * v.step]
        return v.const + sum(min(0, s) for s in spans), v.const + sum(max(0, s) for s in spans)

    def fits(self, v: Aff) -> bool:
        """Whether the sum is seen not to wrap (as a signed integer)."""
        low, high = self.bounds(v)
        end = 1 << (WIDTH[v.elem] - 1)
        return not v.terms and -end <= low and high < end

    def may_assume(self, *operands: Val) -> bool:
        """Whether something of these values can be checked where the nest's code is chosen (`Lowering.speculate`)."""
        if self.assumed is None or max(v.depth for v in operands) > self.assume_depth:
            return False
        return all(abs(v.step) * self.width < 1 << (WIDTH[v.elem] - 2) for v in operands if isinstance(v, Aff))

    def assume_unbroken(self, v: Aff, signed: bool = True):
        """Assumes that the lanes of `v` do not run over the end of the integers."""
        reach, bits = (self.width - 1) * v.step, WIDTH[v.elem]
        if not reach or (signed and self.fits(v)):
            return
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        how, limit = ("le", high - reach) if reach > 0 else ("ge", low - reach)
        first, depth = self.scalar(v._replace(step=0))
        text = f"icmp {'s' if signed else 'u'}{how} {REG[v.elem]} {first}, {const(v.elem, limit).const}"
        self.assumed.append(self.code.pure(depth, text))

    # ---- pointers, and choices --------------------------------------------------------------------------------------

    def pointer(self, v: Val) -> Ptr:
        """A pointer value in base + offset form."""
        if isinstance(v, Ptr):
            return v
        if isinstance(v, Vec):
            raw = self.code.pure(v.depth, f"ptrtoint <{v.width} x ptr> {v.ssa} to <{v.width} x i64>")
            return Ptr("null", 0, Vec("i64", raw, v.depth, v.width))
        return Ptr(v.ssa, v.depth, const("i64", 0))

    def advance(self, p: Ptr, by: Val, size: int) -> Ptr:
        """`by` elements on. A sum of integers that leads to memory is taken not to wrap."""
        by = self.distribute(by, "i64") if isinstance(by, Aff) else self.cast(by, "i64")
        return p._replace(off=self.add(p.off, self.mul(by, const("i64", size))))

    def address(self, p: Ptr) -> tuple[str, int]:
        """(SSA name, level) of the address of lane 0: outer parts added first, the constant last."""
        ssa, at = p.base, p.depth
        parts = sorted([*p.off.terms, *((iv.depth, self._scaled(iv, c, _I64)) for iv, c in p.off.ivs)])
        for d, part in parts:
            at = max(at, d)
            ssa = self.code.pure(at, f"getelementptr i8, ptr {ssa}, i64 {part}")
        if p.off.const:
            ssa = self.code.pure(at, f"getelementptr i8, ptr {ssa}, i64 {p.off.const}")
        return ssa, at

    def integer(self, v: Val) -> Val:
        """A pointer's address as an i64."""
        uniform = is_uniform(v)
        ssa, depth = self.scalar(v) if uniform else self.vector(v)
        width = 0 if uniform else self.width
        text = f"ptrtoint {self.typed('ptr', width)} {ssa} to {self.typed('i64', width)}"
        return self.wrap("i64", self.code.pure(depth, text), depth, width)

    def select(self, c: Val, a: Val, b: Val) -> Val:
        if is_uniform(c) and c.ssa in ("true", "false"):
            return a if c.ssa == "true" else b
        if isinstance(a, Ptr) or isinstance(b, Ptr):
            a, b = self.pointer(a), self.pointer(b)
            a, b = (
                Uni("ptr", *self.address(v)) if v.uniform else Vec("ptr", *self.vector(v), self.width) for v in (a, b)
            )
        elem = a.elem
        if is_uniform(a) and is_uniform(b) and is_uniform(c):
            (x, dx), (y, dy) = self.scalar(a), self.scalar(b)
            depth = max(dx, dy, c.depth)
            ty = REG[elem]
            return self.wrap(elem, self.code.pure(depth, f"select i1 {c.ssa}, {ty} {x}, {ty} {y}"), depth, 0)
        (x, dx), (y, dy) = self.vector(a), self.vector(b)
        depth, ty = max(dx, dy, c.depth), self.typed(elem, self.width)
        ct = "i1" if is_uniform(c) else f"<{self.width} x i1>"
        return self.wrap(elem, self.code.pure(depth, f"select {ct} {c.ssa}, {ty} {x}, {ty} {y}"), depth, self.width)
