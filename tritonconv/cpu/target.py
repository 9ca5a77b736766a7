"""What the lowering needs to know of a processor: vector width and register tile, from LLVM's name and features."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Target:
    triple: str
    cpu: str
    features: str  # LLVM's "+avx2,-sse4a,…"
    vector_bytes: int
    dot_tiles: tuple[tuple[int, int], ...]  # rows × vectors of accumulators, the widest first

    @property
    def avx512(self) -> bool:
        """Whether it has the instructions of `avx512.py`."""
        return {"+avx512f", "+avx512dq", "+avx512vl"} <= set(self.features.split(","))

    @property
    def fuses(self) -> bool:
        """Whether a multiply-add that rounds once is an instruction."""
        return "+fma" in self.features.split(",") or not self.triple.startswith("x86_64")

    def lanes(self, size: int) -> int:
        """Elements of `size` bytes in one vector register."""
        return max(1, self.vector_bytes // size)

    @property
    def registers(self) -> int:
        """Vectors that a loop can hold: accumulators of a product, and what a step of it needs beside them."""
        rows, vectors = self.dot_tiles[0]
        return rows * vectors + vectors + 1

    @property
    def halves(self) -> bool:
        """Whether half a vector takes half the time of a whole one, which is worked on in two parts."""
        return self.cpu == "znver4" and self.vector_bytes == 64

    def dot_tile(self, vectors: int) -> tuple[int, int]:
        """Rows × vectors of accumulators that a matrix product with rows of `vectors` vectors holds in registers."""
        fitting = [tile for tile in self.dot_tiles if tile[1] <= vectors and (tile[1] > 1 or vectors == 1)]
        return min(fitting, key=lambda tile: -vectors % tile[1])

    def register_tile(self, columns: int, size: int) -> tuple[int, int, int]:
        """Rows, vectors and lanes of the accumulators for so many columns of elements of `size` bytes."""
        whole = min(1 << (columns - 1).bit_length(), self.lanes(size))
        widths = (whole, whole // 2) if self.halves and whole > 1 else (whole,)
        tiles = [(*self.dot_tile(-(-columns // width)), width) for width in widths]
        return min(tiles, key=lambda tile: -columns % (tile[1] * tile[2]))


# Beside the accumulators, a step needs its vectors and a broadcast element in registers, and a pointer for each row.
_AVX512 = 64, ((6, 4), (8, 3), (10, 2), (10, 1))
_AVX = 32, ((4, 3), (6, 2), (6, 1))
_SSE = 16, ((4, 2), (4, 1))  # no fused multiply-add: products need registers too
_NEON = 16, ((5, 4), (8, 2), (8, 1))


def describe(triple: str, cpu: str, features: str) -> Target:
    has = {f[1:] for f in features.split(",") if f.startswith("+")}
    if triple.startswith(("aarch64", "arm64")):
        vectors = _NEON
    elif {"avx512f", "avx512vl"} <= has:
        vectors = _AVX512
    else:
        vectors = _AVX if "avx" in has else _SSE
    return Target(triple, cpu, features, *vectors)


@cache
def host() -> Target:
    features = llvm.get_host_cpu_features().flatten()
    return describe(llvm.get_process_triple(), llvm.get_host_cpu_name(), features)


@dataclass(frozen=True)
class Caches:
    """Bytes of the data caches: those of a core's first and second level, and all of the last."""

    first: int
    second: int
    last: int


@cache
def caches() -> Caches:
    """The host's, as Linux tells; elsewhere what is common."""
    sizes = {1: 32 << 10, 2: 512 << 10, 3: 16 << 20}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction":
                sizes[int(level)] = int(size.removesuffix("K")) << 10
    return Caches(sizes[1], sizes[2], sizes[max(sizes)])
