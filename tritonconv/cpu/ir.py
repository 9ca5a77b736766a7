"""A small Python view of a TTIR module: operations, values and types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "index": 64, "ptr": 64,
        "f16": 16, "bf16": 16, "f32": 32, "f64": 64}  # fmt: skip
FLOATS = {"f16", "bf16", "f32", "f64"}


@dataclass(frozen=True)
class Type:
    """`elem` is one of BITS's keys; `shape` is None for a scalar; `pointee` is what a pointer points to."""

    elem: str
    shape: tuple[int, ...] | None = None
    pointee: str | None = None

    @property
    def rank(self) -> int:
        return len(self.shape or ())

    @property
    def numel(self) -> int:
        return prod(self.shape or ())

    @property
    def is_float(self) -> bool:
        return self.elem in FLOATS


@dataclass(eq=False, repr=False)  # values, blocks and operations point to one another
class Value:
    name: str
    type: Type
    op: Op | None = None  # None: a block argument
    users: list[Op] = field(default_factory=list)


@dataclass(eq=False, repr=False)
class Block:
    args: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    parent: Op | None = None
    label: str = ""


@dataclass(eq=False, repr=False)
class Op:
    name: str
    operands: list[Value]
    results: list[Value] = field(default_factory=list)
    attrs: dict[str, str] = field(default_factory=dict)
    regions: list[list[Block]] = field(default_factory=list)
    successors: list[str] = field(default_factory=list)
    block: Block | None = None
    loc: str = ""

    @property
    def result(self) -> Value:
        return self.results[0]

    @property
    def body(self) -> Block:
        return self.regions[0][0]

    def int(self, key: str, default: int | None = None) -> int:
        """An integer, boolean or enum attribute."""
        text = self.attrs.get(key)
        if text is None:
            if default is None:
                raise KeyError(f"{self.name} has no attribute {key}")
            return default
        text = text.split(":")[0].strip()
        return {"true": 1, "false": 0}.get(text) if text in ("true", "false") else int(text)

    def ints(self, key: str) -> list[int]:
        return [int(x) for x in re.findall(r"-?\d+", self.attrs[key].partition(":")[2])]


def walk(op: Op) -> Iterator[Op]:
    """Every operation inside `op`, itself first."""
    yield op
    for region in op.regions:
        for block in region:
            for inner in block.ops:
                yield from walk(inner)
