"""Statements that read and write memory, and what a program knows of its grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

from . import ahead, ir, streaming, turning
from .access import LINE
from .elements import PURE, Buffer, Elements, Fixed, Index, pure
from .masks import mask_at
from .plan import SHAPE
from .values import TRUE, Aff, Val, const, is_uniform


def lower_program_id(low, op):
    low.elements.bound[op.result] = Fixed(Aff("i32", ((1, low.program[op.int("axis")]),), (), 0, 0))


def lower_num_programs(low, op):
    low.elements.bound[op.result] = Fixed(Aff("i32", ((0, low.grid[op.int("axis")]),), (), 0, 0))


@pure("tt.load")
def _load_rule(e: Elements, op, idx):
    """A load inside the nest that uses it, or of a scalar."""
    return e.read(op, idx, mask_at(e, op.operands[1], idx) if len(op.operands) > 1 else TRUE)


def lower_load(low, op):
    e = low.elements
    if not op.result.type.rank:
        e.bound[op.result] = Fixed(e.at(op.result))
    elif op not in low.plan.fused:
        low.keep(op.result)


def read_by_element(low, value: ir.Value) -> list[ir.Op]:
    """The loads of matrices whose elements make those of `value`, each where that is asked for."""
    found, pending = [], [value]
    while pending:
        value = pending.pop()
        if value in low.elements.bound or value.op is None or value.type.rank < 2:
            continue
        if value.op.name == "tt.load" and value.op in low.plan.fused:
            found.append(value.op)
        elif value.op.name in PURE and value.op.name not in SHAPE:
            pending += value.op.operands
    return list(dict.fromkeys(found))


def write_store(e: Elements, op: ir.Op, idx: Index, within: Val | None = None, past: bool | None = None):
    """Writes one element or vector, of that only the lanes `within`, `past` the caches or, by default, as `op` says.
    Where a mask holds in none of the lanes, the value is not computed."""
    past = streams(op) if past is None else past
    mask = mask_at(e, op.operands[2], idx) if len(op.operands) > 2 else TRUE
    if within is not None:
        mask = within if mask == TRUE else e.binary("and {}", mask, within)
    if is_uniform(mask):
        return _write(e, op, idx, mask, past)
    floor = e.floor
    with e.code.when(e.any(mask)):
        e.floor = e.code.depth
        _write(e, op, idx, mask, past)
    e.floor = floor


def write_rows(e: Elements, op: ir.Op, rows: Sequence[Index]):
    """Writes a vector of each row; all are computed before, where one of them is wanted."""
    masks = [mask_at(e, op.operands[2], idx) if len(op.operands) > 2 else TRUE for idx in rows]
    wanted = reduce(partial(e.binary, "or {}"), masks) if all(map(is_uniform, masks)) and TRUE not in masks else TRUE
    floor = e.floor
    with e.code.when(e.scalar(wanted)[0]):
        e.floor = e.code.depth
        values = [e.at(op.operands[1], idx) for idx in rows]
        for idx, value, mask in zip(rows, values, masks, strict=True):
            p = e.pointer(e.at(op.operands[0], idx))
            e.store(p, value, e.checked(op, p, mask, e.code.depth), streams(op))
    e.floor = floor


def _write(e: Elements, op: ir.Op, idx: Index, mask: Val, past: bool):
    p = e.pointer(e.at(op.operands[0], idx))
    e.store(p, e.at(op.operands[1], idx), e.checked(op, p, mask, e.code.depth), past)


def streams(op: ir.Op) -> bool:
    """Whether a store has the cache modifier ".cs": what it writes is not wanted in the caches."""
    written = op.attrs.get("cachePolicy", "") or op.attrs.get("cache", "")  # since Triton 3.9, and before
    return "modifier = cs" in written or written.startswith("5")


def lower_split(low, op):
    """The halves of the last dimension are views of one buffer."""
    whole = low.buffer(op.operands[0])
    for i, result in enumerate(op.results):
        start = whole.pointer(low.elements, (*[const("index", 0)] * len(whole.shape[:-1]), const("index", i)))
        low.elements.bound[result] = Buffer(start, whole.elem, whole.shape[:-1], whole.strides[:-1])


def lower_store(low, op):
    if op in low.deferred:
        return low.deferred.pop(op)()
    if low.plan.last.get(op, op) is not op:
        return
    type = op.operands[1].type
    stores = low.plan.nests.get(op, (op,))
    if len(stores) == 1 and streaming.aligned(low, op):
        return

    alone = len(stores) == 1
    # A processor gathers the parts of a few lines; with more, each part that is written past the caches is a line read
    # from memory and written again.
    whole = alone or low.target.vector_bytes >= LINE

    def write(idx, *more):
        if more:
            return write_rows(low.elements, op, (idx, *more))
        for store in stores:
            write_store(low.elements, store, idx, past=whole and streams(store))
        ahead.ask(low, op, idx)

    value = op.operands[1] if alone and op not in low.ahead else None
    loads = [load.result for store in stores for load in read_by_element(low, store.operands[1])]
    lane = turning.before(low, loads, write)
    low.nest(type.shape or (), write, type.elem, lane, vectors=2 if alone else 1, value=value)
