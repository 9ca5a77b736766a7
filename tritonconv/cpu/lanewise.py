"""Operations that have no vector form: performed one element after another."""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager

from .control import place_blocks
from .elements import Fixed, Index
from .errors import UnsupportedOp
from .values import MEM, SIZE, TRUE, const, index


@contextmanager
def elementwise(low, shape: tuple[int, ...]):
    """A loop nest over all indices of `shape` without lanes; yields the index."""
    outer, low.elements.width = low.elements.width, 1
    with ExitStack() as loops:
        yield tuple(index(loops.enter_context(low.code.loop(n)).iv) for n in shape)
    low.elements.width = outer


_RMW = {1: "and", 2: "or", 3: "xor", 4: "add", 5: "fadd", 6: "max", 7: "min", 8: "umax", 9: "umin", 10: "xchg"}


def lower_atomic(low, op):
    """Lanes that are masked off return 0."""
    e, code, type = low.elements, low.code, op.result.type
    ty, ordering = MEM[type.elem], "seq_cst"
    dest = low.allocate(type.elem, type.shape) if type.rank and op.result.users else None
    with elementwise(low, type.shape or ()) as idx:
        p = e.pointer(e.at(op.operands[0], idx))
        raw = [e.to_memory(e.at(v, idx), 0)[0] for v in op.operands[1 : 3 if op.name.endswith("cas") else 2]]
        mask = TRUE
        if op.name.endswith("rmw") and len(op.operands) > 2:
            mask = e.at(op.operands[2], idx)
        mask = e.checked(op, p, mask, code.depth)
        address = e.address(p)[0]
        with code.arm("on") as on:
            if op.name.endswith("cas"):
                # floats are compared by their bits
                bits = f"i{8 * SIZE[type.elem]}"
                if ty != bits:
                    raw = [code.op(f"bitcast {ty} {r} to {bits}") for r in raw]
                pair = code.op(f"cmpxchg ptr {address}, {bits} {raw[0]}, {bits} {raw[1]} {ordering} {ordering}")
                old = code.op(f"extractvalue {{ {bits}, i1 }} {pair}, 0")
                old = old if ty == bits else code.op(f"bitcast {bits} {old} to {ty}")
            else:
                how = _RMW[op.int("atomic_rmw_op")]
                if type.elem == "bf16" and how == "fadd":
                    raise UnsupportedOp(op, "a sum in bfloat16")
                if type.is_float and how in ("max", "min"):
                    how = "f" + how
                old = code.op(f"atomicrmw {how} ptr {address}, {ty} {raw[0]} {ordering}, align {SIZE[type.elem]}")
        with code.arm("off") as off:
            pass
        ends = code.branch(mask.ssa, on, off)
        before = code.op(f"phi {ty} [ {old}, {ends[0]} ], [ zeroinitializer, {ends[1]} ]")
        result = e.from_memory(type.elem, before, code.depth, 0)
        if dest:
            dest.store(e, idx, result)
        elif not type.rank:
            e.bound[op.result] = Fixed(result)
    if dest:
        e.bound[op.result] = dest


def lower_histogram(low, op):
    """Counts per bin; what falls into none is left out."""
    e, code, (bins,) = low.elements, low.code, op.result.type.shape
    dest = low.allocate("i32", (bins,))
    low.nest(dest.shape, lambda idx: dest.store(e, idx, const("i32", 0)), "i32")
    source = op.operands[0]
    with elementwise(low, source.type.shape) as idx:
        bin = e.at(source, idx)
        counted = e.binary("icmp ult {}", bin, const(bin.elem, bins), "i1")
        if len(op.operands) > 1:
            counted = e.binary("and {}", counted, e.at(op.operands[1], idx))
        with code.when(e.scalar(counted)[0]):
            place = dest.pointer(e, (e.cast(bin, "index"),))
            before = e.load(place, "i32", TRUE, None, code.depth)
            e.store(place, e.add(before, const("i32", 1)), TRUE)
    e.bound[op.result] = dest


def lower_map(low, op):
    """A scalar function with control flow of its own, applied to every element."""
    if op.int("pack") != 1:
        raise UnsupportedOp(op, "several elements at a time")
    e, blocks = low.elements, op.regions[0]
    dests = [low.allocate(r.type.elem, r.type.shape) for r in op.results]
    with elementwise(low, op.result.type.shape) as idx:
        for argument, value in zip(blocks[0].args, op.operands, strict=True):
            e.bound[argument] = Fixed(e.at(value, idx))
        with low.nested():
            place_blocks(low, blocks)
            for dest, value in zip(dests, blocks[-1].ops[-1].operands, strict=True):
                dest.store(e, idx, e.at(value))
    for dest, result in zip(dests, op.results, strict=True):
        e.bound[result] = dest


def lower_print(low, op):
    """A line per element, as on a GPU: `pid (0, 0, 0) idx (3) prefix: value`. C's stdout, flushed."""
    e, code = low.elements, low.code
    code.declared["printf"] = "declare i32 @printf(ptr, ...)"
    code.declared["fflush"] = "declare i32 @fflush(ptr)"
    prefix = re.sub(r"\\([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), op.attrs["prefix"][1:-1]).replace("%", "%%")
    for value, signed in zip(op.operands or [None], op.ints("isSigned") or [0], strict=True):
        shape = value.type.shape or () if value else ()
        with elementwise(low, shape) as idx:
            form, *argument = _format(low, value, idx, signed, op.int("hex")) if value else [""]
            place = f" idx ({', '.join(['%lld'] * len(shape))})" if shape else ""
            text = f"pid (%d, %d, %d){place}{prefix}{form}\n\0".encode()
            literal = "".join(chr(c) if 32 < c < 127 and chr(c).isalnum() else f"\\{c:02X}" for c in text)
            line = code.constant(f"line{len(code.globals)}", f'private constant [{len(text)} x i8] c"{literal}"')
            numbers = [f"i32 {p}" for p in low.program] + [f"i64 {e.scalar(i)[0]}" for i in idx]
            arguments = ", ".join([f"ptr {line}", *numbers, *argument])
            code.op(f"call i32 (ptr, ...) @printf({arguments})")
    code.op("call i32 @fflush(ptr null)")


def _format(low, value, idx: Index, signed: int, hexadecimal: int) -> tuple[str, str]:
    """(printf's directive, typed argument) of one element."""
    e, elem = low.elements, value.type.elem
    v = e.at(value, idx)
    if elem == "ptr":
        return "%p", f"ptr {e.scalar(v)[0]}"
    if value.type.is_float:
        ssa, depth = e.scalar(v)
        return "%f", f"double {ssa if elem == 'f64' else e.code.pure(depth, f'fpext float {ssa} to double')}"
    if elem == "i1":
        v = e.convert("zext", v, "i64")
    return "%llx" if hexadecimal else "%lld" if signed else "%llu", f"i64 {e.scalar(e.cast(v, 'i64', bool(signed)))[0]}"
