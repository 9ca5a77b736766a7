"""Rules for floating point, and for what libraries of functions offer."""

from __future__ import annotations

from . import mathlib
from .elements import Elements, pure
from .errors import UnsupportedOp

_FLOAT = {"arith.addf": "fadd", "arith.subf": "fsub", "arith.mulf": "fmul", "arith.divf": "fdiv", "arith.remf": "frem",
          "tt.precise_divf": "fdiv"}  # fmt: skip


@pure(*_FLOAT)
def _float_binary(e, op, idx):
    return e.binary(f"{_FLOAT[op.name]} {e.contract}{{}}", *e.args(op, idx))


_FLOAT_CALL = {
    "arith.maxnumf": "maxnum",
    "arith.minnumf": "minnum",
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
    (v,) = e.args(op, idx)
    ssa, depth, width = e.unary(v)
    return e.wrap(v.elem, e.code.pure(depth, f"fneg {e.typed(v.elem, width)} {ssa}"), depth, width)


@pure("tt.clampf")
def _clampf(e, op, idx):
    x, low, high = e.args(op, idx)
    top, bottom = ("llvm.minimum", "llvm.maximum") if op.int("propagateNan", 0) else ("llvm.minnum", "llvm.maxnum")
    return e.apply(top, e.apply(bottom, x, low), high)


_FCMP = (
    "false",
    "oeq",
    "ogt",
    "oge",
    "olt",
    "ole",
    "one",
    "ord",
    "ueq",
    "ugt",
    "uge",
    "ult",
    "ule",
    "une",
    "uno",
    "true",
)


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
