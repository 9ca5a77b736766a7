"""Rules for operations that change where a tensor is read, not what is in it."""

from __future__ import annotations

from . import ir, mathlib
from .elements import Elements, Index, pure, quotient, remainder
from .errors import UnsupportedOp
from .parse import constant
from .values import FALSE, TRUE, Aff, Uni, Val, const


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
    value, elem = constant(op), op.result.type.elem
    if isinstance(value, list):
        raise UnsupportedOp(op, "an array of different constants")
    if elem in ("f16", "bf16", "f32", "f64"):
        return Uni(elem, mathlib.literal(value, elem), 0)
    if elem == "i1":
        return TRUE if value else FALSE
    return const(elem, value)
