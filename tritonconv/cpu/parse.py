"""Reads TTIR from MLIR's generic textual form.

Triton's Python bindings cannot list the operations of a block nor read dense constants, so the lowering reads the text.
The generic form is one regular grammar for every operation, whatever its dialect:

    %r:2 = "dialect.op"(%a, %b#1) <{property = value}> ({region}) {attribute = value} : (T, T) -> (T, T) loc(#loc7)
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import lru_cache

from .ir import FLOATS, Block, Op, Type, Value, walk


@lru_cache(4096)
def parse_type(text: str) -> Type:
    if text.startswith("tensor<"):
        *dims, elem = re.match(r"tensor<((?:\d+x)*)(.*)>$", text).groups()
        inner = parse_type(elem)
        return Type(inner.elem, tuple(int(d) for d in dims[0].split("x")[:-1]), inner.pointee)
    if text.startswith("!tt.ptr<"):
        return Type("ptr", None, text[8:-1].split(",")[0])
    return Type(text)


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

    def items(self, close: str) -> Iterator[None]:
        """A turn for each item of a list, which are separated by commas, until it is closed; that is consumed."""
        while self.peek() != close:
            yield
            if self.peek() == ",":
                self.next()
        self.next()

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
        for _ in self.items(close):
            key = self.next().strip('"')
            value = "true"
            if self.peek() == "=":
                self.next()
                value = self.raw((",", close))
            found[key] = value
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
        return [parse_type(self.raw((",", ")"))) for _ in self.items(")")]

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
        op.operands = [self.values[self.next()] for _ in self.items(")")]
        for value in op.operands:
            value.users.append(op)
        if self.peek() == "[":
            self.next()
            op.successors = [self.next() for _ in self.items("]")]
        if self.peek() == "<{":
            self.next()
            op.attrs.update(self.attributes("}>"))
        if self.peek() == "(":
            self.next()
            op.regions = [self.region(op) for _ in self.items(")")]
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
                    block.args = [self.argument() for _ in self.items(")")]
                self.expect(":")
            while self.peek() != "}" and not self.peek().startswith("^"):
                block.ops.append(self.operation(block))
            blocks.append(block)
        self.next()
        return blocks

    def argument(self) -> Value:
        name = self.next()
        self.expect(":")
        value = self.values[name] = Value(name, parse_type(self.raw((",", ")", "loc"))))
        self.location()
        return value


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
