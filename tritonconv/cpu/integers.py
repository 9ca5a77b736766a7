"""Rules for integers and pointers: affine where that is possible, else in registers."""

from __future__ import annotations

from .elements import Elements, high_low, pure
from .masks import PREDICATES
from .values import FALSE, REG, SIZE, TRUE, WIDTH, Aff, Ptr, Val, const, is_uniform


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
        if (
            b.const > 0
            and a.const >= 0
            and a.step >= 0
            and all(c > 0 for _, c in a.ivs)
            and e.fits(a)
            and (parts := high_low(e, a, b.const))
        ):
            return parts[0 if how.endswith("div") else 1]
    if isinstance(a, Aff) and a.step > 0 and is_uniform(b) and e.may_assume(a, b):
        return _divide_run(e, how, a, b)
    if isinstance(b, Aff) and b.is_const and b.const not in (0, -1):
        return e.binary(how + " {}", a, b)
    b = _divisor(e, b)
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
        q = e.binary(how + " {}", a, e.select(minus, const(elem, 1), b))
        return e.select(minus, e.add(const(elem, 0), q, -1), q)
    return e.binary(how + " {}", a, b)


def _divisor(e: Elements, b: Val) -> Val:
    """`b`, or 1 where it is 0."""
    if isinstance(b, Aff) and b.is_const and b.const:
        return b
    return e.select(e.binary("icmp eq {}", b, const(b.elem, 0), "i1"), const(b.elem, 1), b)


def _divide_by_invariant(e: Elements, how: str, a: Val, b: Val) -> Val:
    """32-bit division by a number known further out: its reciprocal is computed there, here a product's high half is
    taken.

    D. Lemire et al., Faster remainder by direct computation (arXiv 1902.01961): n // d = n * ceil(2**64 / d) >> 64 for
    all 32-bit n and d > 1. Signed operands by way of their magnitudes.
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
    product = pure(
        depth, f"mul i128 {pure(depth, f'zext i32 {n} to i128')}, {pure(outer, f'zext i64 {magic} to i128')}"
    )
    high = pure(depth, f"trunc i128 {pure(depth, f'lshr i128 {product}, 64')} to i32")
    q = pure(depth, f"select i1 {whole}, i32 {n}, i32 {high}")
    if sign:
        q = pure(depth, f"sub i32 {pure(depth, f'xor i32 {q}, {sign}')}, {sign}")
    quotient = e.wrap(a.elem, q, depth, 0)
    return quotient if how.endswith("div") else e.add(a, e.mul(quotient, b), -1)


def _divide_run(e: Elements, how: str, a: Aff, b: Val) -> Val:
    """Lanes a, a+1, …: while none of them crosses a multiple of b, the quotient is one number and the remainder runs
    on."""
    first, b = a._replace(step=0), _divisor(e, b)
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
    q = e.cast(e.convert("fptosi", e.binary("fdiv {}", x, y), "i32"), a.elem)
    return q if how == "sdiv" else e.add(a, e.mul(q, b), -1)


@pure("math.absi")
def _absi(e, op, idx):
    (v,) = e.args(op, idx)
    zero = const(v.elem, 0)
    return e.select(e.binary("icmp slt {}", v, zero, "i1"), e.add(zero, v, -1), v)


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


@pure("arith.cmpi")
def _cmpi(e: Elements, op, idx):
    a, b = e.args(op, idx)
    return compare(e, PREDICATES[op.int("predicate")], a, b)


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
    truth = {
        "slt": (high < 0, low >= 0),
        "sle": (high <= 0, low > 0),
        "sgt": (low > 0, high <= 0),
        "sge": (low >= 0, high < 0),
    }
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


@pure("tt.addptr")
def _addptr(e, op, idx):
    p, by = e.args(op, idx)
    return e.advance(e.pointer(p), by, SIZE.get(op.result.type.pointee, 8))


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
    (v,), elem = e.args(op, idx), op.result.type.elem
    if isinstance(v, Ptr) or elem in ("ptr", v.elem):
        return v
    width = 0 if is_uniform(v) else e.width
    raw, ty = e.to_memory(v, width)
    memory = {"f16": "half", "bf16": "i16"}.get(elem, REG[elem])
    target = f"<{width} x {memory}>" if width else memory
    ssa = raw if ty == target else e.code.pure(v.depth, f"bitcast {ty} {raw} to {target}")
    return e.from_memory(elem, ssa, v.depth, width)
