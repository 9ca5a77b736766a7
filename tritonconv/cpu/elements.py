"""One table: pure TTIR operation → its value at given indices.

`Elements.at(value, idx)` is the whole of the lowering's data flow: a tensor is never built, its elements are asked for by
whichever loop nest needs them. `idx` holds one integer (constant, loop variable, or lanes) per dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import ir, mathlib
from .affine import Affine
from .code import Code
from .errors import UnsupportedOp
from .values import FALSE, REG, SIZE, TRUE, WIDTH, Aff, Ptr, Uni, Val, Vec, const, is_uniform

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


@dataclass(eq=False)
class Panels(Buffer):
    """A matrix [k, n] in panels of a few columns, [n / columns, k, columns]: a product reads one panel from end to end."""

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


class Elements(Affine):
    def __init__(self, code: Code, fuse: bool = True):
        super().__init__(code)
        self.bound: dict[ir.Value, Fixed | Buffer | Moving] = {}
        self.region = 0  # memory is read no further out than this level
        self.settled: set[ir.Value] = set()  # masks known to hold wherever they are asked for
        self.contract = "contract " if fuse else ""
        self.checks = None  # in debug mode, what writes the bounds checks

    def at(self, value: ir.Value, idx: Index = ()) -> Val:
        key = (value, idx)
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
        """What the load `op` gives at `idx`. A mask may rest on an assumption, so nothing masked is read before it is checked."""
        p = self.pointer(self.at(op.operands[0], idx))
        other = self.at(op.operands[2], idx) if len(op.operands) > 2 else None
        depth = max(self.region, self.floor) if len(op.operands) > 1 else self.region
        return self.load(p, op.result.type.elem, self.checked(op, p, mask, depth), other, depth)

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
            ssa = self.code.call(depth, function + ("f" if base == "float" else ""), base, *((base, s) for s, _ in regs))
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

    def convert(self, text: str, v: Val, elem: str) -> Val:
        """A conversion instruction, `text` to another element type."""
        ssa, depth, width = self.unary(v)
        return self.wrap(elem, self.code.pure(depth, f"{text} {self.typed(v.elem, width)} {ssa} to {self.typed(elem, width)}"), depth, width)  # fmt: skip


# ---- shapes: the index changes, not the data --------------------------------------------------------------------------


def _zeros(rank: int) -> Index:
    return (const("index", 0),) * rank


def _splat(op, idx):
    return _zeros(op.operands[0].type.rank)


def _broadcast(op, idx):
    return tuple(const("index", 0) if n == 1 else i for i, n in zip(idx, op.operands[0].type.shape, strict=True))


def _expand_dims(op, idx):
    axis = op.int("axis")
    return idx[:axis] + idx[axis + 1 :]


def _trans(op, idx):
    source = [None] * len(idx)
    for i, axis in zip(idx, op.ints("order"), strict=True):
        source[axis] = i
    return tuple(source)


# operation → function(op, idx): where its operand is read for the result's element at idx
REARRANGE = {
    "tt.splat": _splat,
    "tt.unsplat": _splat,
    "tt.broadcast": _broadcast,
    "tt.expand_dims": _expand_dims,
    "tt.trans": _trans,
}


def source_index(op: ir.Op, idx: Index) -> Index:
    return REARRANGE[op.name](op, idx)


@pure(*REARRANGE)
def _rearrange(e: Elements, op, idx):
    return e.at(op.operands[0], source_index(op, idx))


@pure("tt.reshape")
def _reshape(e, op, idx):
    source, shape = op.operands[0], op.result.type.shape
    flat = const("index", 0)
    for i, n in zip(idx, shape, strict=True):
        flat = e.add(e.scale(flat, n) if isinstance(flat, Aff) else e.mul(flat, const("index", n)), i)
    return e.at(source, split_index(e, flat, source.type.shape))


def split_index(e: Elements, flat: Val, shape: tuple[int, ...]) -> Index:
    """Row-major flat index → one index per dimension."""
    out = []
    for n in reversed(shape[1:]):
        out.append(remainder(e, flat, n))
        flat = quotient(e, flat, n)
    return tuple([flat, *reversed(out)]) if shape else ()


def _split(e: Elements, v: Aff, n: int) -> tuple[Aff, Aff] | None:
    """v = n * high + low with 0 <= low < n in every lane, where the coefficients (powers of two) show it."""
    if v.terms:
        return None
    high = v._replace(ivs=tuple((iv, c // n) for iv, c in v.ivs if c % n == 0), const=v.const // n, step=0)
    low = v._replace(ivs=tuple((iv, c) for iv, c in v.ivs if c % n), const=v.const % n)
    reach = low.const + sum((iv.extent - 1) * c for iv, c in low.ivs) + (e.width - 1) * v.step
    return (high, low) if reach < n else None


def quotient(e: Elements, v: Val, n: int) -> Val:
    """v // n for an index (never negative)."""
    if isinstance(v, Aff) and (parts := _split(e, v, n)):
        return parts[0]
    return e.binary("udiv {}", v, const("index", n))


def remainder(e: Elements, v: Val, n: int) -> Val:
    if isinstance(v, Aff) and (parts := _split(e, v, n)):
        return parts[1]
    return e.binary("urem {}", v, const("index", n))


@pure("tt.join")
def _join(e, op, idx):
    a, b = op.operands
    last = idx[-1]
    if isinstance(last, Aff) and last.is_const:
        return e.at(op.operands[last.const], idx[:-1])
    which = e.binary("icmp eq {}", last, const("index", 0), "i1")
    return e.select(which, e.at(a, idx[:-1]), e.at(b, idx[:-1]))


@pure("tt.cat")
def _cat(e, op, idx):
    a, b = op.operands
    n = a.type.shape[0]
    first = e.binary("icmp slt {}", idx[0], const("index", n), "i1")
    below = e.apply("llvm.smin", idx[0], const("index", n - 1))
    above = e.apply("llvm.smax", e.add(idx[0], const("index", n), -1), const("index", 0))
    return e.select(first, e.at(a, (below, *idx[1:])), e.at(b, (above, *idx[1:])))


@pure("tt.gather")
def _gather(e, op, idx):
    source, where = op.operands
    axis = op.int("axis")
    return e.at(source, (*idx[:axis], e.cast(e.at(where, idx), "index"), *idx[axis + 1 :]))


@pure("tt.make_range")
def _make_range(e, op, idx):
    return e.add(e.cast(idx[0], op.result.type.elem), const(op.result.type.elem, op.int("start")))


@pure("arith.constant")
def _constant(e, op, idx):
    value, elem = ir.constant(op), op.result.type.elem
    if isinstance(value, list):
        raise UnsupportedOp(op, "an array of different constants")
    if elem in ("f16", "bf16", "f32", "f64"):
        return Uni(elem, mathlib.literal(value, elem), 0)
    if elem == "i1":
        return TRUE if value else FALSE
    return const(elem, value)


# ---- integers ---------------------------------------------------------------------------------------------------------


@pure("arith.addi")
def _addi(e, op, idx):
    a, b = e.args(op, idx)
    return e.binary("xor {}", a, b) if a.elem == "i1" else e.add(a, b)


@pure("arith.subi")
def _subi(e, op, idx):
    return e.add(*e.args(op, idx), -1)


@pure("arith.muli")
def _muli(e, op, idx):
    a, b = e.args(op, idx)
    return e.binary("and {}", a, b) if a.elem == "i1" else e.mul(a, b)


@pure("arith.shli")
def _shli(e, op, idx):
    a, b = e.args(op, idx)
    if isinstance(b, Aff) and b.is_const and 0 <= b.const < WIDTH[a.elem]:
        return e.mul(a, const(a.elem, 1 << b.const))
    return e.binary("shl {}", a, b)


_BITWISE = {"arith.ori": "or", "arith.xori": "xor", "arith.shrsi": "ashr", "arith.shrui": "lshr"}


@pure(*_BITWISE)
def _bitwise(e, op, idx):
    return e.binary(_BITWISE[op.name] + " {}", *e.args(op, idx))


@pure("arith.andi")
def _andi(e, op, idx):
    if op.result.type.elem != "i1":
        return e.binary("and {}", *e.args(op, idx))
    return mask_at(e, op.result, idx)


def conjuncts(mask: ir.Value, idx: Index):
    """The masks that `mask` is the conjunction of, each with its own index."""
    op = mask.op
    if op and op.name == "arith.andi":
        for v in op.operands:
            yield from conjuncts(v, idx)
    elif op and op.name in REARRANGE:
        yield from conjuncts(op.operands[0], source_index(op, idx))
    else:
        yield mask, idx


def mask_at(e: Elements, mask: ir.Value, idx: Index) -> Val:
    return conjunction(e, list(conjuncts(mask, idx)))


def conjunction(e: Elements, leaves: Sequence[tuple[ir.Value, Index]]) -> Val:
    """The conjunction of masks. 0 <= x and x < n together are one unsigned comparison, x < max(n, 0)."""
    leaves = [leaf for leaf in leaves if leaf[0] not in e.settled]
    lower = {(v.op.operands[0], i) for v, i in leaves if _predicate(v) == "sge" and _is_zero(v.op.operands[1])}
    upper = {(v.op.operands[0], i) for v, i in leaves if _predicate(v) == "slt"}
    # lanes are compared signed, which the fast path can assume away
    both = {(x, i) for x, i in lower & upper if is_uniform(e.at(x, i))}
    result: Val = TRUE
    for leaf, idx in leaves:
        ranged = _predicate(leaf) in ("sge", "slt") and (leaf.op.operands[0], idx) in both
        if ranged and _predicate(leaf) == "sge" and _is_zero(leaf.op.operands[1]):
            continue
        if ranged:
            x, n = (e.at(v, idx) for v in leaf.op.operands)
            part = e.binary("icmp ult {}", x, e.apply("llvm.smax", n, const(n.elem, 0)), "i1")
        else:
            part = e.at(leaf, idx)
        if part == FALSE:
            return FALSE
        if part != TRUE:
            result = part if result == TRUE else e.binary("and {}", result, part)
    return result


def _predicate(mask: ir.Value) -> str:
    return _ICMP[mask.op.int("predicate")] if mask.op and mask.op.name == "arith.cmpi" else ""


def _is_zero(v: ir.Value) -> bool:
    return bool(v.op) and v.op.name == "arith.constant" and ir.constant(v.op) == 0


_MINMAX = {"arith.maxsi": "smax", "arith.minsi": "smin", "arith.maxui": "umax", "arith.minui": "umin"}


@pure(*_MINMAX)
def _minmax(e, op, idx):
    return e.apply("llvm." + _MINMAX[op.name], *e.args(op, idx))


_DIVIDE = {"arith.divsi": "sdiv", "arith.divui": "udiv", "arith.remsi": "srem", "arith.remui": "urem"}


@pure(*_DIVIDE)
def _divide(e: Elements, op, idx):
    """Never traps: a zero divisor, which Triton leaves undefined, becomes 1; i32 is divided in 64 bits."""
    a, b = e.args(op, idx)
    how, elem = _DIVIDE[op.name], a.elem
    if isinstance(a, Aff) and isinstance(b, Aff) and b.is_const and b.const:
        if a.is_const:
            q = abs(a.const) // abs(b.const) * (1 if (a.const < 0) == (b.const < 0) else -1)
            if how in ("sdiv", "srem") or min(a.const, b.const) >= 0:
                return const(elem, q if how.endswith("div") else a.const - q * b.const)
        if b.const == 1:
            return a if how.endswith("div") else const(elem, 0)
        if b.const > 0 and a.const >= 0 and a.step >= 0 and all(c > 0 for _, c in a.ivs) and e.fits(a) and (parts := _split(e, a, b.const)):
            return parts[0 if how.endswith("div") else 1]
    if isinstance(a, Aff) and a.step > 0 and is_uniform(b) and e.may_assume(a, b):
        return _divide_run(e, how, a, b)
    if isinstance(b, Aff) and b.is_const and b.const not in (0, -1):
        return e.binary(how + " {}", a, b)
    one = const(elem, 1)
    b = e.select(e.binary("icmp eq {}", b, const(elem, 0), "i1"), one, b)
    if WIDTH[elem] <= 32 and is_uniform(a) and is_uniform(b):
        if e.scalar(b)[1] < e.scalar(a)[1] and WIDTH[elem] == 32:
            return _divide_by_invariant(e, how, a, b)
        q = e.cast(e.binary(how[0] + "div {}", *(e.cast(v, "i64", how[0] == "s") for v in (a, b))), elem)
        return q if how.endswith("div") else e.add(a, e.mul(q, b), -1)
    if how[0] == "s":
        if WIDTH[elem] <= 32:
            return _divide_in_double(e, how, a, b)
        # INT_MIN / -1 would trap: divide by 1 and negate instead
        minus = e.binary("icmp eq {}", b, const(elem, -1), "i1")
        q = e.binary(how + " {}", a, e.select(minus, one, b))
        return e.select(minus, e.add(const(elem, 0), q, -1), q)
    return e.binary(how + " {}", a, b)


def _divide_by_invariant(e: Elements, how: str, a: Val, b: Val) -> Val:
    """32-bit division by a number known further out: its reciprocal is computed there, here a product's high half is taken.

    D. Lemire et al., Faster remainder by direct computation (arXiv 1902.01961): n // d = n * ceil(2**64 / d) >> 64 for all
    32-bit n and d > 1. Signed operands by way of their magnitudes.
    """
    pure = e.code.pure
    (n, depth), (d, outer) = e.scalar(a), e.scalar(b)
    sign = None
    if how[0] == "s":
        signs = pure(outer, f"ashr i32 {d}, 31")
        d = e.code.call(outer, "llvm.abs.i32", "i32", ("i32", d), ("i1", "false"))
        mine = pure(depth, f"ashr i32 {n}, 31")
        sign = pure(depth, f"xor i32 {mine}, {signs}")
        n = e.code.call(depth, "llvm.abs.i32", "i32", ("i32", n), ("i1", "false"))
    wide = pure(outer, f"zext i32 {d} to i64")
    magic = pure(outer, f"add i64 {pure(outer, f'udiv i64 -1, {wide}')}, 1")
    whole = pure(outer, f"icmp eq i32 {d}, 1")
    product = pure(depth, f"mul i128 {pure(depth, f'zext i32 {n} to i128')}, {pure(outer, f'zext i64 {magic} to i128')}")
    high = pure(depth, f"trunc i128 {pure(depth, f'lshr i128 {product}, 64')} to i32")
    q = pure(depth, f"select i1 {whole}, i32 {n}, i32 {high}")
    if sign:
        q = pure(depth, f"sub i32 {pure(depth, f'xor i32 {q}, {sign}')}, {sign}")
    quotient = e.wrap(a.elem, q, depth, 0)
    return quotient if how.endswith("div") else e.add(a, e.mul(quotient, b), -1)


def _divide_run(e: Elements, how: str, a: Aff, b: Val) -> Val:
    """Lanes a, a+1, …: while none of them crosses a multiple of b, the quotient is one number and the remainder runs on."""
    first = a._replace(step=0)
    b = b if isinstance(b, Aff) and b.is_const else e.select(e.binary("icmp eq {}", b, const(a.elem, 0), "i1"), const(a.elem, 1), b)
    rem = e.binary(f"{how[0]}rem {{}}", first, b)
    e.assume_unbroken(a, signed=how[0] == "s")
    end = e.add(rem, const(a.elem, (e.width - 1) * a.step))
    e.assumed.append(e.binary("icmp slt {}" if how[0] == "s" else "icmp ult {}", end, b, "i1").ssa)
    if how[0] == "s":
        e.assumed.append(e.binary("icmp sge {}", first, const(a.elem, 0), "i1").ssa)
    if how.endswith("rem"):
        return rem._replace(step=a.step)
    return e.binary(how + " {}", first, b)


def _divide_in_double(e: Elements, how: str, a: Val, b: Val) -> Val:
    """i32 division by way of double, which is exact and has vector instructions; truncates as C does."""
    x, y = (e.convert("sitofp", v, "f64") for v in (a, b))
    q = e.convert("fptosi", e.binary("fdiv {}", x, y), "i32") if WIDTH[a.elem] == 32 else None
    if q is None:
        q = e.cast(e.convert("fptosi", e.binary("fdiv {}", x, y), "i32"), a.elem)
    return q if how == "sdiv" else e.add(a, e.mul(q, b), -1)


@pure("tt.mulhiui")
def _mulhi(e, op, idx):
    a, b = e.args(op, idx)
    bits = WIDTH[a.elem]
    ssa, other, depth, width = e.pair(a, b)
    wide = f"<{width} x i{2 * bits}>" if width else f"i{2 * bits}"
    narrow = e.typed(a.elem, width)
    x, y = (e.code.pure(depth, f"zext {narrow} {s} to {wide}") for s in (ssa, other))
    product = e.code.pure(depth, f"mul {wide} {x}, {y}")
    by = "<" + ", ".join([f"i{2 * bits} {bits}"] * width) + ">" if width else str(bits)
    high = e.code.pure(depth, f"lshr {wide} {product}, {by}")
    return e.wrap(a.elem, e.code.pure(depth, f"trunc {wide} {high} to {narrow}"), depth, width)


_ICMP = ("eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge")


@pure("arith.cmpi")
def _cmpi(e: Elements, op, idx):
    a, b = e.args(op, idx)
    return compare(e, _ICMP[op.int("predicate")], a, b)


def compare(e: Elements, how: str, a: Val, b: Val) -> Val:
    if isinstance(a, Ptr) or isinstance(b, Ptr):
        a, b = e.integer(a), e.integer(b)
    if isinstance(a, Aff) and isinstance(b, Aff) and how[0] == "s":
        known = _known(e, how, a, b) if e.fits(a) and e.fits(b) else None
        if known is not None:
            return TRUE if known else FALSE
        if (a.step or b.step) and e.may_assume(a, b):
            for v in (a, b):
                e.assume_unbroken(v)
            # true in every lane if true in the lane where it is hardest to satisfy
            slope = (a.step - b.step) if how in ("slt", "sle") else (b.step - a.step)
            lane = e.width - 1 if slope > 0 else 0
            at = [v._replace(step=0, const=const(v.elem, v.const + lane * v.step).const) for v in (a, b)]
            e.assumed.append(e.binary(f"icmp {how} {{}}", *at, "i1").ssa)
            return TRUE
    return e.binary(f"icmp {how} {{}}", a, b, "i1")


def _known(e: Elements, how: str, a: Aff, b: Aff) -> bool | None:
    """Whether `a how b` for all values of the loop variables and lanes, if the bounds of the difference tell."""
    ivs = dict(a.ivs)
    for iv, c in b.ivs:
        ivs[iv] = ivs.get(iv, 0) - c
    low, high = e.bounds(a._replace(ivs=tuple(ivs.items()), const=a.const - b.const, step=a.step - b.step))
    truth = {"slt": (high < 0, low >= 0), "sle": (high <= 0, low > 0), "sgt": (low > 0, high <= 0), "sge": (low >= 0, high < 0)}
    yes, no = truth[how]
    return True if yes else False if no else None


@pure("arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast")
def _int_cast(e, op, idx):
    (v,) = e.args(op, idx)
    elem, signed = op.result.type.elem, op.name != "arith.extui"
    if elem == "i1":
        one = e.binary("and {}", v, const(v.elem, 1))
        return e.binary("icmp ne {}", one, const(v.elem, 0), "i1")
    if v.elem == "i1":
        return e.convert("sext" if signed else "zext", v, elem)
    return e.cast(v, elem, signed)


@pure("arith.select")
def _select(e, op, idx):
    c = e.at(op.operands[0], idx if op.operands[0].type.rank else ())
    return e.select(c, *(e.at(v, idx) for v in op.operands[1:]))


# ---- pointers ---------------------------------------------------------------------------------------------------------


@pure("tt.addptr")
def _addptr(e, op, idx):
    p, by = e.args(op, idx)
    return e.advance(e.pointer(p), by, SIZE[op.result.type.pointee] if op.result.type.pointee in SIZE else 8)


@pure("tt.ptr_to_int")
def _ptr_to_int(e, op, idx):
    return e.cast(e.integer(e.at(op.operands[0], idx)), op.result.type.elem)


@pure("tt.int_to_ptr")
def _int_to_ptr(e, op, idx):
    v = e.cast(e.at(op.operands[0], idx), "i64")
    if is_uniform(v):
        ssa, depth = e.scalar(v)
        return Ptr(e.code.pure(depth, f"inttoptr i64 {ssa} to ptr"), depth, const("i64", 0))
    return Ptr("null", 0, v)


@pure("tt.bitcast", "arith.bitcast")
def _bitcast(e, op, idx):
    (v,) = e.args(op, idx)
    elem = op.result.type.elem
    if elem == "ptr" or v.elem == elem if not isinstance(v, Ptr) else True:
        return v
    raw, ty = e.to_memory(v, 0 if is_uniform(v) else e.width)
    width = 0 if is_uniform(v) else e.width
    memory = {"f16": "half", "bf16": "i16"}.get(elem, REG[elem])
    target = f"<{width} x {memory}>" if width else memory
    ssa = raw if ty == target else e.code.pure(v.depth, f"bitcast {ty} {raw} to {target}")
    return e.from_memory(elem, ssa, v.depth, width)


# ---- floats -----------------------------------------------------------------------------------------------------------

_FLOAT = {"arith.addf": "fadd", "arith.subf": "fsub", "arith.mulf": "fmul", "arith.divf": "fdiv", "arith.remf": "frem",
          "tt.precise_divf": "fdiv"}  # fmt: skip


@pure(*_FLOAT)
def _float_binary(e, op, idx):
    return e.binary(f"{_FLOAT[op.name]} {e.contract}{{}}", *e.args(op, idx))


_FLOAT_CALL = {"arith.maxnumf": "maxnum", "arith.minnumf": "minnum", "arith.maximumf": "maximum", "arith.minimumf": "minimum",
               "math.absf": "fabs", "math.absi": None, "math.sqrt": "sqrt", "tt.precise_sqrt": "sqrt", "math.fma": "fma",
               "math.floor": "floor", "math.ceil": "ceil", "math.copysign": "copysign", "math.trunc": "trunc",
               "math.roundeven": "roundeven"}  # fmt: skip


@pure(*_FLOAT_CALL)
def _float_call(e: Elements, op, idx):
    args = e.args(op, idx)
    if op.name == "math.absi":
        return e.select(e.binary("icmp slt {}", args[0], const(args[0].elem, 0), "i1"), e.add(const(args[0].elem, 0), args[0], -1), args[0])  # fmt: skip
    return e.apply("llvm." + _FLOAT_CALL[op.name], *args)


@pure("arith.negf")
def _negf(e, op, idx):
    (v,) = e.args(op, idx)
    ssa, depth, width = e.unary(v)
    return e.wrap(v.elem, e.code.pure(depth, f"fneg {e.typed(v.elem, width)} {ssa}"), depth, width)


@pure("tt.clampf")
def _clampf(e, op, idx):
    x, low, high = e.args(op, idx)
    top, bottom = ("llvm.minimum", "llvm.maximum") if op.int("propagateNan", 0) else ("llvm.minnum", "llvm.maxnum")
    return e.apply(top, e.apply(bottom, x, low), high)


_FCMP = ("false", "oeq", "ogt", "oge", "olt", "ole", "one", "ord", "ueq", "ugt", "uge", "ult", "ule", "une", "uno", "true")


@pure("arith.cmpf")
def _cmpf(e, op, idx):
    return e.binary(f"fcmp {_FCMP[op.int('predicate')]} {{}}", *e.args(op, idx), "i1")


@pure("arith.sitofp", "arith.uitofp")
def _int_to_float(e, op, idx):
    elem = op.result.type.elem
    wide = "f64" if elem == "f64" else "f32"
    v = e.convert(op.name[6:], e.at(op.operands[0], idx), wide)
    return v if elem == wide else e.rounded(v._replace(elem=elem))


@pure("arith.fptosi", "arith.fptoui")
def _float_to_int(e, op, idx):
    return e.convert(op.name[6:], e.at(op.operands[0], idx), op.result.type.elem)


@pure("arith.extf", "arith.truncf", "tt.fp_to_fp")
def _float_cast(e: Elements, op, idx):
    (v,) = e.args(op, idx)
    if op.name == "tt.fp_to_fp" and op.int("rounding", 1) == 0:
        return mathlib.truncate_to(e, v, op.result.type.elem, op)
    return mathlib.float_cast(e, v, op.result.type.elem)


@pure(*mathlib.FUNCTIONS)
def _math(e, op, idx):
    return mathlib.call(e, op.name, e.args(op, idx))


@pure("tt.extern_elementwise")
def _extern(e, op, idx):
    symbol = op.attrs["symbol"].strip('"')
    value = mathlib.library_call(e, symbol, e.args(op, idx))
    if value is None or value.elem != op.result.type.elem:
        raise UnsupportedOp(op, f"the library function {symbol}")
    return value
