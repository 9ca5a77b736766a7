"""What the lowering needs to know of a processor: vector width and register tile, from LLVM's name and features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Target:
    triple: str
    cpu: str
    features: str  # LLVM's "+avx2,-sse4a,…"
    vector_bytes: int
    registers: int  # vector registers

    def lanes(self, size: int) -> int:
        """Elements of `size` bytes in one vector register."""
        return max(1, self.vector_bytes // size)

    @property
    def dot_tile(self) -> tuple[int, int]:
        """Rows × vectors of accumulators held in registers by a matrix product: rows * vectors + vectors + 1 fit."""
        return {16: (6, 2), 32: (14, 2) if self.vector_bytes == 64 else (6, 4)}[self.registers]


def describe(triple: str, cpu: str, features: str) -> Target:
    has = {f[1:] for f in features.split(",") if f.startswith("+")}
    if triple.startswith(("aarch64", "arm64")):
        width, registers = 16, 32
    elif "avx512f" in has and "avx512vl" in has:
        width, registers = 64, 32
    else:
        width, registers = (32 if "avx" in has else 16), 16
    return Target(triple, cpu, features, width, registers)


@cache
def host() -> Target:
    features = llvm.get_host_cpu_features().flatten()
    return describe(llvm.get_process_triple(), llvm.get_host_cpu_name(), features)
