"""Instructions of AVX-512 that LLVM IR has no word for, on vectors of any width."""

from __future__ import annotations

from .values import REG, SIZE, Val, is_uniform

_REGISTER = 64  # bytes
_LEAST, _GREATEST, _LEAST_MAGNITUDE = 0b0100, 0b0101, 0b0010  # of vrangeps: what it takes, and whose sign


def scaled(e, x: Val, n: Val) -> Val:
    """x · 2^⌊n⌋, rounded once; both are floats."""
    return _apply(e, "scalef", x, n)


def limited(e, x: Val, bound: Val) -> Val:
    """x, or where it is NaN or its magnitude is larger, the bound with the sign of x."""
    return _apply(e, "range", x, bound, immediate=_LEAST_MAGNITUDE)


def maxnum(e, a: Val, b: Val) -> Val:
    """The larger number; of a number and NaN, the number."""
    return _apply(e, "range", a, b, immediate=_GREATEST)


def minnum(e, a: Val, b: Val) -> Val:
    return _apply(e, "range", a, b, immediate=_LEAST)


def _apply(e, name: str, *operands: Val, immediate: int | None = None) -> Val:
    """`llvm.x86.avx512.mask.NAME`, register by register; a vector that is shorter than one fills the first lanes."""
    code, elem = e.code, operands[0].elem
    base = REG[elem]
    size = SIZE["f64" if elem == "f64" else "f32"]
    registers = [e.scalar(v) if is_uniform(v) else e.vector(v) for v in operands]
    depth = max(d for _, d in registers)
    width = 0 if all(map(is_uniform, operands)) else e.width
    part = min(max(width, 16 // size), _REGISTER // size)
    ty, bits = f"<{part} x {base}>", part * size * 8
    function = f"llvm.x86.avx512.mask.{name}.{'pd' if elem == 'f64' else 'ps'}.{bits}"
    tail = [(ty, "zeroinitializer"), (f"i{max(8, part)}", "-1")]
    if immediate is not None:
        tail.insert(0, ("i32", str(immediate)))
    if bits == 8 * _REGISTER:
        tail.append(("i32", "4"))  # round as always
    parts = []
    for start in range(0, width or 1, part):
        arguments = []
        for v, (ssa, _) in zip(operands, registers, strict=True):
            if is_uniform(v):
                ssa = e.splat(base, ssa, depth, part)
            elif width != part:
                ssa = _shuffled(e, depth, base, width, ssa, "poison", range(start, start + part))
            arguments.append((ty, ssa))
        parts.append(code.call(depth, function, ty, *arguments, *tail))
    length = part
    while len(parts) > 1:
        halves = zip(parts[::2], parts[1::2], strict=True)
        parts = [_shuffled(e, depth, base, length, low, high, range(2 * length)) for low, high in halves]
        length *= 2
    (result,) = parts
    if not width:
        result = code.pure(depth, f"extractelement {ty} {result}, i64 0")
    elif width < part:
        result = _shuffled(e, depth, base, part, result, "poison", range(width))
    return e.wrap(elem, result, depth, width)


def _shuffled(e, depth: int, base: str, width: int, a: str, b: str, lanes: range) -> str:
    """The lanes of `a` and `b`, vectors of `width`, that are numbered so, b's after a's."""
    ty = f"<{width} x {base}>"
    picks = ", ".join(f"i32 {min(i, 2 * width - 1)}" for i in lanes)
    return e.code.pure(depth, f"shufflevector {ty} {a}, {ty} {b}, <{len(lanes)} x i32> <{picks}>")
