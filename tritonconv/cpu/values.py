"""What a TTIR value is at one index: the lowering's abstract domain.

A tensor is a function of its indices. Evaluated at given indices (constants, loop variables, or the lanes of one
vector) it is one of:

    Aff   integers: sum of terms by loop level + loop variables with constant coefficients + constant + step * lane
    Ptr   a uniform base address + a byte offset (Aff or Vec)
    Uni   any other value that is the same in every lane
    Vec   one value per lane

Contiguity, hoisting and bounds fall out of the representation; no separate axis analysis is needed.
"""

from __future__ import annotations

from typing import NamedTuple

from .code import Iv

# How a type lives in registers and in memory. Half types are computed in float and rounded after every operation.
REG = {"i1": "i1", "i8": "i8", "i16": "i16", "i32": "i32", "i64": "i64", "index": "i64", "ptr": "ptr",
       "f16": "float", "bf16": "float", "f32": "float", "f64": "double"}  # fmt: skip
MEM = REG | {"i1": "i8", "f16": "half", "bf16": "i16"}
SIZE = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "index": 8, "ptr": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8}
WIDTH = {"i8": 8, "i16": 16, "i32": 32, "i64": 64, "index": 64, "i1": 1}


class Uni(NamedTuple):
    elem: str
    ssa: str
    depth: int


class Vec(NamedTuple):
    elem: str
    ssa: str
    depth: int
    width: int


class Aff(NamedTuple):
    elem: str
    terms: tuple[tuple[int, str], ...]  # (level, SSA name of type `elem`), at most one per level, by level
    ivs: tuple[tuple[Iv, int], ...]
    const: int
    step: int

    @property
    def uniform(self) -> bool:
        return self.step == 0

    @property
    def is_const(self) -> bool:
        return not self.terms and not self.ivs and self.step == 0

    @property
    def depth(self) -> int:
        return max([d for d, _ in self.terms] + [iv.depth for iv, _ in self.ivs], default=0)


class Ptr(NamedTuple):
    base: str
    depth: int
    off: Aff | Vec  # bytes, i64

    @property
    def uniform(self) -> bool:
        return isinstance(self.off, Aff) and self.off.step == 0


Val = Uni | Vec | Aff | Ptr
TRUE = Uni("i1", "true", 0)
FALSE = Uni("i1", "false", 0)


def const(elem: str, value: int) -> Aff:
    bits = WIDTH[elem]
    value &= (1 << bits) - 1
    return Aff(elem, (), (), value - (1 << bits) if value >> (bits - 1) else value, 0)


def index(iv: Iv) -> Aff:
    return Aff("index", (), ((iv, iv.step),), 0, 0)


def lanes(at: Aff, step: int = 1) -> Aff:
    return at._replace(step=step)


def shift(at: Aff, by: int) -> Aff:
    return at._replace(const=at.const + by)


def is_uniform(v: Val) -> bool:
    return not isinstance(v, Vec) and (isinstance(v, Uni) or v.uniform)
