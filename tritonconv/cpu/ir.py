"""A small Python view of a TTIR module: operations, values and types, read from MLIR's generic textual form.

Triton's Python bindings cannot list the operations of a block nor read dense constants, so the lowering reads the text.
The generic form is one regular grammar for every operation, whatever its dialect:

    %r:2 = "dialect.op"(%a, %b#1) <{property = value}> ({region}) {attribute = value} : (T, T) -> (T, T) loc(#loc7)
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from functools import lru_cache
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


@lru_cache(4096)
def parse_type(text: str) -> Type:
    if text.startswith("tensor<"):
        *dims, elem = re.match(r"tensor<((?:\d+x)*)(.*)>$", text).groups()
        inner = parse_type(elem)
        return Type(inner.elem, tuple(int(d) for d in dims[0].split("x")[:-1]), inner.pointee)
    if text.startswith("!tt.ptr<"):
        return Type("ptr", None, text[8:-1].split(",")[0])
    return Type(text)


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


_TOKEN = re.compile(
    r'//[^\n]*|"(?:[^"\\]|\\.)*"|%[\w.$-]+(?:#\d+)?|\^\w+|->|<\{|\}>|#loc\w*|[()\[\]{}=,:]|[^\s()\[\]{}=,:"%^<>]+|[<>]'
)


class _Parser:
    def __init__(self, text: str):
        self.text = text
        self.tokens = [(m.group(), m.start(), m.end()) for m in _TOKEN.finditer(text) if m[0][:2] != "//"]
        self.tokens.append(("", len(text), len(text)))
        self.pos = 0
        self.values: dict[str, Value] = {}
        self.locs: list[tuple[object, str]] = []

    def peek(self) -> str:
        return self.tokens[self.pos][0]

    def next(self) -> str:
        self.pos += 1
        return self.tokens[self.pos - 1][0]

    def expect(self, token: str):
        found = self.next()
        if found != token:
            at = self.tokens[self.pos - 1][1]
            raise SyntaxError(
                f"expected {token!r}, found {found!r} in TTIR near {self.text[max(0, at - 80) : at + 40]!r}"
            )

    def raw(self, stops: tuple[str, ...]) -> str:
        """Source text up to a stop token outside any bracket; the stop is not consumed."""
        start, end, depth = self.tokens[self.pos][1], self.tokens[self.pos][1], 0
        while True:
            token = self.peek()
            if depth == 0 and token in stops or not token:
                return self.text[start:end].strip()
            depth += (token in ("(", "[", "{", "<", "<{")) - (token in (")", "]", "}", ">", "}>"))
            end = self.tokens[self.pos][2]
            self.pos += 1

    def attributes(self, close: str) -> dict[str, str]:
        found = {}
        while self.peek() != close:
            key = self.next().strip('"')
            value = "true"
            if self.peek() == "=":
                self.next()
                value = self.raw((",", close))
            found[key] = value
            if self.peek() == ",":
                self.next()
        self.next()
        return found

    def location(self) -> str:
        if self.peek() != "loc":
            return ""
        self.next()
        self.expect("(")
        text = self.raw((")",))
        self.expect(")")
        return text

    def type_list(self) -> list[Type]:
        if self.peek() != "(":
            return [parse_type(self.raw((",", ")", "}", "loc", "%", '"', "^", "{", "->") + self._line_end()))]
        self.next()
        types = []
        while self.peek() != ")":
            types.append(parse_type(self.raw((",", ")"))))
            if self.peek() == ",":
                self.next()
        self.next()
        return types

    def _line_end(self) -> tuple[str, ...]:
        """A single result type ends with its line: the token that starts the next line is a stop."""
        eol = self.text.find("\n", self.tokens[self.pos][1])
        i = self.pos
        while self.tokens[i][0] and self.tokens[i][1] < eol:
            i += 1
        return (self.tokens[i][0],)

    def operation(self, block: Block) -> Op:
        names = []
        while self.peek().startswith("%"):
            name, count = self.next(), 1
            if self.peek() == ":":
                self.next()
                count = int(self.next())
                names += [f"{name}#{i}" for i in range(count)]
            else:
                names.append(name)
            if self.peek() == ",":
                self.next()
        if names:
            self.expect("=")
        op = Op(self.next().strip('"'), [], block=block)
        self.expect("(")
        while self.peek() != ")":
            op.operands.append(self.values[self.next()])
            if self.peek() == ",":
                self.next()
        self.next()
        for value in op.operands:
            value.users.append(op)
        if self.peek() == "[":
            self.next()
            while self.peek() != "]":
                op.successors.append(self.next())
                if self.peek() == ",":
                    self.next()
            self.next()
        if self.peek() == "<{":
            self.next()
            op.attrs.update(self.attributes("}>"))
        if self.peek() == "(":
            self.next()
            while self.peek() != ")":
                op.regions.append(self.region(op))
                if self.peek() == ",":
                    self.next()
            self.next()
        if self.peek() == "{":
            self.next()
            op.attrs.update(self.attributes("}"))
        self.expect(":")
        self.type_list()
        self.expect("->")
        types = self.type_list()
        op.results = [Value(n, t, op) for n, t in zip(names, types, strict=True)]
        self.values.update((v.name, v) for v in op.results)
        op.loc = self.location()
        return op

    def region(self, parent: Op) -> list[Block]:
        self.expect("{")
        blocks = []
        while self.peek() != "}":
            block = Block(parent=parent)
            if self.peek().startswith("^"):
                block.label = self.next()
                if self.peek() == "(":
                    self.next()
                    while self.peek() != ")":
                        name = self.next()
                        self.expect(":")
                        value = Value(name, parse_type(self.raw((",", ")", "loc"))))
                        self.location()
                        self.values[name] = value
                        block.args.append(value)
                        if self.peek() == ",":
                            self.next()
                    self.next()
                self.expect(":")
            while self.peek() != "}" and not self.peek().startswith("^"):
                block.ops.append(self.operation(block))
            blocks.append(block)
        self.next()
        return blocks


_LOC_DEF = re.compile(r"^(#loc\w*) = loc\((.*)\)$", re.M)


def source_lines(text: str) -> dict[str, str]:
    """`#loc7` → "file.py:12", following name, callsite and alias locations to the kernel's own line."""
    raw = dict(_LOC_DEF.findall(text))

    def resolve(loc: str, depth: int = 0) -> str:
        loc = raw.get(loc, loc)
        if plain := re.match(r'"([^"]+)":(\d+):\d+', loc):
            return f"{plain[1]}:{plain[2]}"
        if call := re.match(r"callsite\(.* at (#loc\w*)\)", loc):
            return resolve(call[1], depth + 1)
        alias = re.findall(r"#loc\w*", loc)
        return resolve(alias[-1], depth + 1) if alias and depth < 50 else ""

    return {name: resolve(name) for name in raw}


def parse_module(text: str) -> list[Op]:
    """The module's functions (`tt.func` operations), with every operation's `loc` resolved to "file:line"."""
    parser = _Parser(text[: m.start()] if (m := _LOC_DEF.search(text, text.find('"builtin.module"'))) else text)
    while parser.peek() != '"builtin.module"':  # leading `#loc = …` lines
        parser.next()
    module = parser.operation(Block())
    lines = source_lines(text)
    for op in walk(module):
        op.loc = lines.get(op.loc, "") or op.loc
    return [op for op in module.body.ops if op.name == "tt.func"]


def walk(op: Op):
    """Every operation inside `op`, itself first."""
    yield op
    for region in op.regions:
        for block in region:
            for inner in block.ops:
                yield from walk(inner)


def parse_number(text: str, elem: str) -> int | float:
    """One literal of a constant: `32`, `true`, `1.0e+00`, or the hexadecimal bits that MLIR prints for inf and nan."""
    if text in ("true", "false"):
        return int(text == "true")
    if elem not in FLOATS:
        return int(text, 0)
    if not text.startswith("0x"):
        return float(text)
    bits = int(text, 16)
    if elem == "bf16":
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    code = {"f16": ("<H", "<e"), "f32": ("<I", "<f"), "f64": ("<Q", "<d")}[elem]
    return struct.unpack(code[1], struct.pack(code[0], bits))[0]


def constant(op: Op) -> int | float | list:
    """The value of an `arith.constant`: a number (also for a splat), or a flat list for a dense array."""
    text, elem = op.attrs["value"], op.result.type.elem
    if dense := re.match(r"dense<(.*)> : ", text, re.S):
        body = dense[1]
        if body.startswith("["):
            return [parse_number(x, elem) for x in re.findall(r"[^\s,\[\]]+", body)]
        return parse_number(body, elem)
    return parse_number(text.split(" : ")[0], elem)
