"""Rules for floating point, and for what libraries of functions offer."""

from __future__ import annotations

from . import avx512, libdevice, mathlib
from .elements import Elements, pure
from .errors import UnsupportedOp
from .values import Uni, is_uniform

_FLOAT = {"arith.addf": "fadd", "arith.subf": "fsub", "arith.mulf": "fmul", "arith.remf": "frem",
          "tt.precise_divf": "fdiv"}  # fmt: skip


@pure(*_FLOAT)
def _float_binary(e, op, idx):
    return e.binary(f"{_FLOAT[op.name]} {e.contract}{{}}", *e.args(op, idx))


# the least and the greatest magnitude of a number whose reciprocal is not subnormal
_ORDINARY = {"f32": (2.0**-126, 2.0**126), "f64": (2.0**-1022, 2.0**1022)}


@pure("arith.divf")
def _divide(e: Elements, op, idx):
    """By a number that is the same in all lanes: times its reciprocal, corrected by what that leaves over (Markstein
    1990). That rounds as a division does, unless what is left over is subnormal: then it is off by one ulp at most."""
    x, y = e.args(op, idx)
    if is_uniform(x) or not is_uniform(y) or x.elem not in _ORDINARY or not e.target.fuses or not e.may_assume(y):
        return e.binary(f"fdiv {e.contract}{{}}", x, y)
    for how, limit in zip(("oge", "ole"), _ORDINARY[x.elem], strict=True):
        limit = Uni(x.elem, mathlib.literal(limit, x.elem), 0)
        e.assumed.append(e.binary(f"fcmp {how} {{}}", e.apply("llvm.fabs", y), limit, "i1").ssa)
    reciprocal = e.binary("fdiv {}", Uni(x.elem, "1.0", 0), y)
    quotient = e.binary("fmul {}", x, reciprocal)
    rest = e.apply("llvm.fma", e.negated(quotient), y, x)
    corrected = e.apply("llvm.fma", rest, reciprocal, quotient)
    number = e.binary("fcmp ord {}", corrected, corrected, "i1")
    return e.select(number, corrected, quotient)  # infinity leaves NaN over


_NUMBERS = {"arith.maxnumf": ("llvm.maxnum", avx512.maxnum), "arith.minnumf": ("llvm.minnum", avx512.minnum)}


@pure(*_NUMBERS)
def _choose_number(e: Elements, op, idx):
    a, b = e.args(op, idx)
    generic, special = _NUMBERS[op.name]
    # LLVM sees of a constant that it is a number, and makes one instruction of that, too
    if e.target.avx512 and not any(v.op and v.op.name == "arith.constant" for v in op.operands):
        return special(e, a, b)
    return e.apply(generic, a, b)


_FLOAT_CALL = {
    "arith.maximumf": "maximum",
    "arith.minimumf": "minimum",
    "math.absf": "fabs",
    "math.sqrt": "sqrt",
    "tt.precise_sqrt": "sqrt",
    "math.fma": "fma",
    "math.floor": "floor",
    "math.ceil": "ceil",
    "math.copysign": "copysign",
    "math.trunc": "trunc",
    "math.roundeven": "roundeven",
}


@pure(*_FLOAT_CALL)
def _float_call(e: Elements, op, idx):
    return e.apply("llvm." + _FLOAT_CALL[op.name], *e.args(op, idx))


@pure("arith.negf")
def _negf(e, op, idx):
    return e.negated(*e.args(op, idx))


@pure("tt.clampf")
def _clampf(e, op, idx):
    x, low, high = e.args(op, idx)
    top, bottom = ("llvm.minimum", "llvm.maximum") if op.int("propagateNan", 0) else ("llvm.minnum", "llvm.maxnum")
    return e.apply(top, e.apply(bottom, x, low), high)


# of arith.cmpf, by number
_PREDICATES = ("false", "oeq", "ogt", "oge", "olt", "ole", "one", "ord",
               "ueq", "ugt", "uge", "ult", "ule", "une", "uno", "true")  # fmt: skip


@pure("arith.cmpf")
def _cmpf(e, op, idx):
    return e.binary(f"fcmp {_PREDICATES[op.int('predicate')]} {{}}", *e.args(op, idx), "i1")


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
    value = libdevice.call(e, symbol, e.args(op, idx))
    if value is None or value.elem != op.result.type.elem:
        raise UnsupportedOp(op, f"the library function {symbol}")
    return value
