"""Elementary functions and roundings, written as vector code: no math library is needed for float.

Polynomials for log, tanh: S. L. Moshier, Cephes Mathematical Library (logf, tanhf), public domain coefficients. Errors
within 4 ulp. Double precision calls the C library lane by lane.
"""

from __future__ import annotations

import math
import struct

from . import avx512
from .errors import UnsupportedOp
from .values import Uni, Val, const

_MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds a float to an integer in the low bits


def literal(value: float, elem: str) -> str:
    """A float constant as LLVM writes it exactly: the bits of the double that equals it."""
    if elem in ("f32", "f16", "bf16") and math.isfinite(value):
        try:
            value = struct.unpack("<f", struct.pack("<f", value))[0]
        except OverflowError:
            value = math.copysign(math.inf, value)
    return (
        f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
        if value != 0 or math.copysign(1, value) < 0
        else "0.0"
    )


def _c(value: float) -> Uni:
    return Uni("f32", literal(value, "f32"), 0)


def _i(value: int):
    return const("i32", value)


class _F:
    """Operators on float values, for formulas that read like formulas."""

    def __init__(self, e):
        self.e = e

    def add(self, a, b):
        return self.e.binary("fadd {}", a, b)

    def sub(self, a, b):
        return self.e.binary("fsub {}", a, b)

    def mul(self, a, b):
        return self.e.binary("fmul {}", a, b)

    def div(self, a, b):
        return self.e.binary("fdiv {}", a, b)

    def fma(self, a, b, c):
        return self.e.apply("llvm.fmuladd", a, b, c)

    def less(self, a, b):
        return self.e.binary("fcmp olt {}", a, b, "i1")

    def bits(self, v):
        return self.e.convert("bitcast", v, "i32")

    def floats(self, v):
        return self.e.convert("bitcast", v, "f32")

    def poly(self, x, coefficients):
        """Highest power first."""
        acc = _c(coefficients[0])
        for c in coefficients[1:]:
            acc = self.fma(acc, x, _c(c))
        return acc

    def power_of_two(self, n):
        return self.floats(self.e.binary("shl {}", self.e.add(n, _i(127)), _i(23)))


# exp(r) = 1 + r (1 + r P(r)) for |r| <= ln2/2: a least-squares fit, reweighted towards the minimax, off by 3e-9
_EXP = (1.3814560370519757e-3, 8.368735201656818e-3, 4.166838899254799e-2, 1.666652113199234e-1, 4.999999403953552e-1,
        1.0, 1.0)  # fmt: skip


def _exp_reduced(f: _F, r: Val, n: Val, t: Val) -> Val:
    """exp(r) * 2**n for |r| <= ln2/2, scaled in one instruction or in two steps, so that neither overflows early.

    n: as a float; t: n + _MAGIC. With that instruction, n may be anything, and r is anything where n is out of range.
    """
    if f.e.target.avx512:
        return avx512.scaled(f.e, f.poly(avx512.limited(f.e, r, _c(0.5)), _EXP), n)
    n = f.e.add(f.bits(t), _i(struct.unpack("<i", struct.pack("<f", _MAGIC))[0]), -1)
    half = f.e.binary("ashr {}", n, _i(1))
    return f.mul(f.mul(f.poly(r, _EXP), f.power_of_two(half)), f.power_of_two(f.e.add(n, half, -1)))


def _clamp(f: _F, x: Val, low: float, high: float) -> Val:
    """Keeps a nan."""
    x = f.e.select(f.less(x, _c(low)), _c(low), x)
    return f.e.select(f.less(_c(high), x), _c(high), x)


def _exp(e, x: Val) -> Val:
    f = _F(e)
    x = x if e.target.avx512 else _clamp(f, x, -104.0, 89.0)
    t = f.fma(x, _c(1.44269504088896341), _c(_MAGIC))
    n = f.sub(t, _c(_MAGIC))
    return _exp_reduced(f, f.fma(n, _c(2.12194440e-4), f.fma(n, _c(-0.693359375), x)), n, t)


def _exp2(e, x: Val) -> Val:
    f = _F(e)
    x = x if e.target.avx512 else _clamp(f, x, -150.0, 128.5)
    t = f.add(x, _c(_MAGIC))
    n = f.sub(t, _c(_MAGIC))
    return _exp_reduced(f, f.mul(f.sub(x, n), _c(math.log(2))), n, t)


_LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip


def _log_parts(f: _F, x: Val) -> tuple[Val, Val]:
    """(log of the mantissa, exponent as a float) of a positive finite x, subnormals included."""
    e = f.e
    small = f.less(x, _c(2.0**-126))
    x = e.select(small, f.mul(x, _c(2.0**23)), x)
    bits = f.bits(x)
    # mantissa in [sqrt(1/2), sqrt(2))
    shifted = e.add(bits, _i(0x3F3504F3), -1)
    n = e.binary("ashr {}", shifted, _i(23))
    mantissa = f.floats(e.add(bits, e.binary("shl {}", n, _i(23)), -1))
    n = e.convert("sitofp", n, "f32")
    n = e.select(small, f.sub(n, _c(23.0)), n)
    m = f.sub(mantissa, _c(1.0))
    z = f.mul(m, m)
    y = f.mul(f.mul(f.poly(m, _LOG), m), z)
    return (m, f.fma(z, _c(-0.5), y)), n


def _log_edges(f: _F, x: Val, y: Val) -> Val:
    e = f.e
    inf = _c(math.inf)
    y = e.select(f.less(x, inf), y, x)  # inf and nan pass
    y = e.select(e.binary("fcmp oeq {}", x, _c(0.0), "i1"), _c(-math.inf), y)
    return e.select(f.less(x, _c(0.0)), _c(math.nan), y)


def _log(e, x: Val) -> Val:
    f = _F(e)
    (m, y), n = _log_parts(f, x)
    y = f.fma(n, _c(-2.12194440e-4), y)
    return _log_edges(f, x, f.fma(n, _c(0.693359375), f.add(m, y)))


def _log2(e, x: Val) -> Val:
    f = _F(e)
    (m, y), n = _log_parts(f, x)
    log2e = 0.44269504088896340736  # log2(e) - 1
    z = f.add(f.fma(m, _c(log2e), f.mul(y, _c(log2e))), y)
    return _log_edges(f, x, f.add(f.add(z, m), n))


# erf(x) = x P(x²)/Q(x²) for |x| <= 3.925, beyond which it rounds to 1: a least-squares fit (reweighted towards the
# minimax) of relative error 4e-8
_ERF_P = (2.151635985127509e-06, 2.822665392630677e-4, 3.4788890239332375e-3, 5.185626286506943e-2,
          1.8319136163128918e-1, 1.128379159215776)  # fmt: skip
_ERF_Q = (3.901670607678546e-05, 1.100630900694174e-3, 1.4384441485998184e-2, 1.1118445857417905e-1,
          4.956823414972472e-1, 1.0)  # fmt: skip


def _erf(e, x: Val) -> Val:
    f = _F(e)
    x = _clamp(f, x, -3.925, 3.925)
    z = f.mul(x, x)
    return _clamp(f, f.div(f.mul(x, f.poly(z, _ERF_P)), f.poly(z, _ERF_Q)), -1.0, 1.0)


_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)


def _tanh(e, x: Val) -> Val:
    f = _F(e)
    a = e.apply("llvm.fabs", x)
    s = f.mul(x, x)
    near = f.fma(f.mul(f.poly(s, _TANH), s), x, x)
    far = f.sub(_c(1.0), f.div(_c(2.0), f.add(_exp(e, f.add(a, a)), _c(1.0))))
    return e.select(f.less(a, _c(0.625)), near, e.apply("llvm.copysign", far, x))


def _rsqrt(e, x: Val) -> Val:
    return e.binary("fdiv {}", Uni(x.elem, "1.0", 0), e.apply("llvm.sqrt", x))


# operation → (vector code for float or None, C library name for double and for what has no vector code)
FUNCTIONS = {
    "math.exp": (_exp, "exp"),
    "math.exp2": (_exp2, "exp2"),
    "math.log": (_log, "log"),
    "math.log2": (_log2, "log2"),
    "math.erf": (_erf, "erf"),
    "math.tanh": (_tanh, "tanh"),
    "math.rsqrt": (_rsqrt, None),
    "math.sin": (None, "sin"),
    "math.cos": (None, "cos"),
    "math.tan": (None, "tan"),
    "math.log1p": (None, "log1p"),
    "math.expm1": (None, "expm1"),
    "math.powf": (None, "pow"),
    "math.atan2": (None, "atan2"),
    "math.atan": (None, "atan"),
    "math.asin": (None, "asin"),
    "math.acos": (None, "acos"),
    "math.sinh": (None, "sinh"),
    "math.cosh": (None, "cosh"),
    "math.atanh": (None, "atanh"),
    "math.asinh": (None, "asinh"),
    "math.acosh": (None, "acosh"),
    "math.cbrt": (None, "cbrt"),
}


def call(e, name: str, args: list[Val]) -> Val:
    vector, library = FUNCTIONS[name]
    elem = args[0].elem
    if elem == "f64" and library:
        return e.apply(library, *args)
    args = [v._replace(elem="f32") if v.elem in ("f16", "bf16") else v for v in args]
    result = vector(e, *args) if vector else e.apply(library, *args)
    return e.rounded(result._replace(elem=elem)) if elem in ("f16", "bf16") else result


# ---- roundings between float types ------------------------------------------------------------------------------


def float_cast(e, v: Val, elem: str) -> Val:
    """To nearest, ties to even. Half types are floats in registers, so widening one to float changes nothing."""
    source = "f32" if v.elem in ("f16", "bf16") else v.elem
    v = v._replace(elem=source)
    if elem == "f64":
        return v if source == "f64" else e.convert("fpext", v, "f64")
    if source == "f64":
        v = e.convert("fptrunc", v, "f32") if elem == "f32" else _to_odd(e, v)
    return v._replace(elem=elem) if elem == "f32" else round_to(e, v._replace(elem="f32"), elem)


def round_to(e, v: Val, elem: str) -> Val:
    """A float (in whatever half type it is labelled) rounded to `elem`'s precision."""
    v = v._replace(elem="f32")
    if elem == "f16":
        ssa, depth, width = e.unary(v)
        half, full = (f"<{width} x half>", f"<{width} x float>") if width else ("half", "float")
        short = e.code.pure(depth, f"fptrunc {full} {ssa} to {half}")
        return e.wrap(elem, e.code.pure(depth, f"fpext {half} {short} to {full}"), depth, width)
    f = _F(e)
    bits = f.bits(v)
    odd = e.binary("and {}", e.binary("lshr {}", bits, _i(16)), _i(1))
    up = e.add(e.add(bits, _i(0x7FFF)), odd)
    nan = e.binary("fcmp uno {}", v, v, "i1")
    up = e.select(nan, e.binary("or {}", bits, _i(0x400000)), up)
    return f.floats(e.binary("and {}", up, _i(-65536)))._replace(elem=elem)


def truncate_to(e, v: Val, elem: str, op) -> Val:
    """Toward zero (`rtz`): bfloat16 only, as on GPUs."""
    if elem != "bf16" or v.elem != "f32":
        raise UnsupportedOp(op, f"rounding toward zero from {v.elem} to {elem}")
    f = _F(e)
    return f.floats(e.binary("and {}", f.bits(v), _i(-65536)))._replace(elem=elem)


def _to_odd(e, v: Val) -> Val:
    """double → float, inexact results made odd: rounding that once more to a half type is then rounding once."""
    f = _F(e)
    near = e.convert("fptrunc", v, "f32")
    back = e.convert("fpext", near, "f64")
    inexact = e.binary("fcmp one {}", back, v, "i1")
    over = e.binary("fcmp ogt {}", e.apply("llvm.fabs", back), e.apply("llvm.fabs", v), "i1")
    bits = f.bits(near)
    below = e.select(over, e.add(bits, _i(-1)), bits)
    return f.floats(e.select(inexact, e.binary("or {}", below, _i(1)), bits))
