"""Masked loads by AVX2's own instructions.

Of a vector wider than a register LLVM makes several, and if it knows that the mask never holds in one of them, it loads
that one without a mask: past the end of a tensor, perhaps. It leaves these instructions as they are.
"""

from __future__ import annotations

from .code import Code
from .target import Target
from .values import SIZE

# By the type of an element: the instruction, and what its mask is made of, negative where it holds.
_LOADS = {
    "float": ("llvm.x86.avx.maskload.ps", "i32"),
    "double": ("llvm.x86.avx.maskload.pd", "i64"),
    "i32": ("llvm.x86.avx2.maskload.d", "i32"),
    "i64": ("llvm.x86.avx2.maskload.q", "i64"),
}
_REGISTERS = {16: "", 32: ".256"}  # bytes


def takes(target: Target, base: str, width: int) -> bool:
    """Whether it loads vectors of so many elements of the LLVM type `base`."""
    if base not in _LOADS or target.avx512 or "+avx2" not in target.features.split(","):
        return False
    return width * SIZE[_LOADS[base][1]] >= min(_REGISTERS)


def masked_load(code: Code, base: str, address: str, bits: str, width: int, depth: int) -> str:
    """The vector at `address`, zero where `bits` (<width x i1>) are not set."""
    name, number = _LOADS[base]
    size = SIZE[number]
    if width * size in _REGISTERS:
        ty, mask = f"<{width} x {base}>", f"<{width} x {number}>"
        load = code.intrinsic(f"{name}{_REGISTERS[width * size]}", ty, ("ptr", mask))
        wide = code.op(f"sext <{width} x i1> {bits} to {mask}", depth)
        return code.op(f"call {ty} {load}(ptr {address}, {mask} {wide})", depth)
    half, parts = width // 2, []
    for start in (0, half):
        picks = ", ".join(f"i32 {start + i}" for i in range(half))
        own = code.op(f"shufflevector <{width} x i1> {bits}, <{width} x i1> poison, <{half} x i32> <{picks}>", depth)
        at = code.op(f"getelementptr i8, ptr {address}, i64 {start * size}", depth) if start else address
        parts.append(masked_load(code, base, at, own, half, depth))
    ty, picks = f"<{half} x {base}>", ", ".join(f"i32 {i}" for i in range(width))
    return code.op(f"shufflevector {ty} {parts[0]}, {ty} {parts[1]}, <{width} x i32> <{picks}>", depth)
