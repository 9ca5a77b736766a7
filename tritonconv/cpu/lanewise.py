"""Operations that have no vector form: performed one element after another."""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager

from .elements import Fixed, Index
from .errors import UnsupportedOp
from .values import TRUE, const, index


@contextmanager
def elementwise(low, shape: tuple[int, ...]):
    """A loop nest over all indices of `shape` without lanes; yields the index."""
    outer, low.elements.width = low.elements.width, 1
    with ExitStack() as loops:
        yield tuple(index(loops.enter_context(low.code.loop(n)).iv) for n in shape)
    low.elements.width = outer


def lower_histogram(low, op):
    """Counts per bin; what falls into none is left out."""
    e, code, (bins,) = low.elements, low.code, op.result.type.shape
    dest = low.allocate("i32", (bins,))
    low.nest(dest.shape, lambda idx: e.store(dest.pointer(e, idx), const("i32", 0), TRUE), "i32")
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
        used = low.region(blocks)
        for dest, value in zip(dests, blocks[-1].ops[-1].operands, strict=True):
            e.store(dest.pointer(e, idx), e.at(value)._replace(elem=dest.stored), TRUE)
        low.used = used
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
