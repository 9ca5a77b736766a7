"""Functions of CUDA's libdevice and ROCm's ocml, which Triton's front end calls by name."""

from __future__ import annotations

import math

from . import mathlib
from .mathlib import FUNCTIONS, literal
from .values import WIDTH, Uni, Val, const

_INTRINSICS = ("floor", "ceil", "trunc", "round", "rint", "nearbyint", "sqrt", "fabs", "copysign", "fma")
_C_LIBRARY = ("exp10", "log10", "hypot", "fmod", "remainder", "fdim", "nextafter", "logb", "erfc", "lgamma", "tgamma",
              "j0", "j1", "y0", "y1")  # fmt: skip
# a device library's function, without prefix and type → math operation, LLVM intrinsic, LLVM instruction or C function
_NAMES = (
    {name.split(".")[1]: name for name in FUNCTIONS}
    | {name: f"llvm.{name}" for name in _INTRINSICS}
    | {name: name for name in _C_LIBRARY}
    | {f"fast_{name}": f"math.{name}" for name in ("sin", "cos", "tan", "exp", "log", "log2")}
    | {f"{t}{name}_rn": f"f{name} {{}}" for t in "fd" for name in ("add", "sub", "mul", "div")}
    | {
        "pow": "math.powf",
        "fast_pow": "math.powf",
        "fast_exp10": "exp10",
        "fast_log10": "log10",
        "fast_divide": "fdiv {}",
    }
    | {
        "fsqrt_rn": "llvm.sqrt",
        "dsqrt_rn": "llvm.sqrt",
        "fmaf_rn": "llvm.fma",
        "fma_rn": "llvm.fma",
        "frsqrt_rn": "math.rsqrt",
    }
)


def _flag(e, condition: Val) -> Val:
    return e.convert("zext", condition, "i32")


def _magnitude(e, how: str, x: Val) -> Val:
    """Whether |x| compares so with infinity."""
    return _flag(e, e.binary(how, e.apply("llvm.fabs", x), Uni(x.elem, literal(math.inf, x.elem), 0), "i1"))


def _signbit(e, x: Val) -> Val:
    bits = e.convert("bitcast", x, "i64" if x.elem == "f64" else "i32")
    return _flag(e, e.binary("icmp slt {}", bits, const(bits.elem, 0), "i1"))


def _ones(e, x: Val) -> Val:
    return e.cast(e.apply("llvm.ctpop", x), "i32")


def _first_one(e, x: Val) -> Val:
    """From 1 at the low end; 0 for 0."""
    zero, one = const(x.elem, 0), const(x.elem, 1)
    below = e.binary("xor {}", x, e.add(x, one, -1))  # the first one and what is under it
    return e.select(e.binary("icmp eq {}", x, zero, "i1"), const("i32", 0), _ones(e, below))


def _leading_zeros(e, x: Val) -> Val:
    shift = 1
    while shift < WIDTH[x.elem]:
        x = e.binary("or {}", x, e.binary("lshr {}", x, const(x.elem, shift)))
        shift *= 2
    return _ones(e, e.binary("xor {}", x, const(x.elem, -1)))


_FORMULAS = {
    "isnan": lambda e, x: _flag(e, e.binary("fcmp uno {}", x, x, "i1")),
    "isinf": lambda e, x: _magnitude(e, "fcmp oeq {}", x),
    "finite": lambda e, x: _magnitude(e, "fcmp olt {}", x),
    "signbit": _signbit,
    "popc": _ones,
    "ffs": _first_one,
    "clz": _leading_zeros,
    "brev": lambda e, x: e.apply("llvm.bitreverse", x),
    "abs": lambda e, x: e.apply("llvm.smax", x, e.add(const(x.elem, 0), x, -1)),
}
# other names of the same
_FORMULAS |= {"isfinite": _FORMULAS["finite"], "llabs": _FORMULAS["abs"]}


def call(e, symbol: str, args: list[Val]) -> Val | None:
    """A function of CUDA's libdevice (`__nv_…`) or ROCm's ocml (`__ocml_…_f32`); None if it is not known."""
    name = symbol[7:].rsplit("_", 1)[0] if symbol.startswith("__ocml_") else symbol.removeprefix("__nv_")
    how = next((found for short in _shorter(name) if (found := _FORMULAS.get(short) or _NAMES.get(short))), None)
    if how is None:
        return None
    if callable(how):
        return how(e, *args)
    if how in FUNCTIONS:
        return mathlib.call(e, how, args)
    return e.binary(how, *args) if "{}" in how else e.apply(how, *args)


def _shorter(name: str) -> tuple[str, ...]:
    """Without the letters that say which type it is for: sinf, isnand, popcll."""
    return name, name.removesuffix("f"), name.removesuffix("d"), name.removesuffix("ll")
