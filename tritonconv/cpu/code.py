"""Writes LLVM IR as text, one nested level (entry, program, loop, branch) inside another.

A value that depends only on outer levels is written there, before the inner level begins: loop-invariant code is
hoisted as it is made, and equal expressions on a level get one name. What is left for LLVM is instruction selection,
register allocation and scheduling.
"""

from __future__ import annotations

from contextlib import contextmanager


class Iv:
    """A loop variable that counts turns, 0 <= ssa < extent (i64), and stands for the index ssa * step."""

    __slots__ = ("ssa", "depth", "extent", "step")

    def __init__(self, ssa: str, depth: int, extent: int, step: int = 1):
        self.ssa, self.depth, self.extent, self.step = ssa, depth, extent, step


class Level:
    """Where the code that depends on this level, and on nothing deeper, is written. `label` is its basic block.

    If it is `closed`, what depends on the level around it is written here, too, while this is being written."""

    __slots__ = ("depth", "lines", "start", "label", "known", "memo", "closed")

    def __init__(self, depth: int, label: str, closed: bool = False):
        self.depth, self.start, self.label, self.closed = depth, label, label, closed
        self.lines: list[str] = []
        self.known: dict[str, str] = {}  # expression -> SSA name: value numbering
        self.memo: dict = {}  # (TTIR value, indices) -> lowered value


class Code:
    def __init__(self):
        self.count = 0
        self.levels = [Level(0, "%entry")]
        self.declared: dict[str, str] = {}  # intrinsic or library symbol -> declaration
        self.globals: dict[str, str] = {}

    @property
    def depth(self) -> int:
        return len(self.levels) - 1

    @property
    def top(self) -> Level:
        return self.levels[-1]

    def at(self, depth: int | None = None) -> Level:
        """Where what depends on the level `depth` is written; without it, the innermost level."""
        depth = self.depth if depth is None else depth
        while depth < self.depth and self.levels[depth + 1].closed:
            depth += 1
        return self.levels[depth]

    def name(self, prefix: str = "v") -> str:
        self.count += 1
        return f"%{prefix}{self.count}"

    def pure(self, depth: int, expression: str) -> str:
        """A side-effect-free instruction, written on the level `depth` unless an equal one stands there already."""
        level = self.at(depth)
        ssa = level.known.get(expression)
        if ssa is None:
            ssa = level.known[expression] = self.name()
            level.lines.append(f"  {ssa} = {expression}")
        return ssa

    def op(self, expression: str, depth: int | None = None) -> str:
        """An instruction whose repetition matters (loads, calls that touch memory)."""
        ssa = self.name()
        self.at(depth).lines.append(f"  {ssa} = {expression}")
        return ssa

    def do(self, instruction: str, depth: int | None = None):
        self.at(depth).lines.append(f"  {instruction}")

    def intrinsic(self, name: str, result: str, arguments: tuple[str, ...]) -> str:
        """Declares a function once; returns its `@name`."""
        self.declared.setdefault(name, f"declare {result} @{name}({', '.join(arguments)})")
        return f"@{name}"

    def call(self, depth: int, name: str, result: str, *arguments: tuple[str, str]) -> str:
        """A call of a function without side effects; arguments are (type, ssa)."""
        function = self.intrinsic(name, result, tuple(t for t, _ in arguments))
        return self.pure(depth, f"call {result} {function}({', '.join(f'{t} {s}' for t, s in arguments)})")

    def constant(self, name: str, definition: str) -> str:
        self.globals.setdefault(name, f"@{name} = {definition}")
        return f"@{name}"

    def start(self, label: str):
        """Begin a basic block on the current level."""
        self.top.lines.append(f"{label[1:]}:")
        self.top.label = label

    def goto(self, label: str):
        self.do(f"br label {label}")

    def push(self, label: str, closed: bool = False) -> Level:
        level = Level(len(self.levels), label, closed)
        self.levels.append(level)
        return level

    def pop(self) -> Level:
        return self.levels.pop()

    @contextmanager
    def loop(self, extent: int, step: int = 1, phis: list[tuple[str, str]] = ()):
        """for iv in range(0, extent, step), with constant bounds that give at least one turn; yields a Loop."""
        loop = Loop(self, phis)
        turns = -(-extent // step)
        loop.iv = Iv(loop.ssa, loop.depth, turns, step)
        level = self.push(loop.head)
        yield loop
        self.pop()
        entry = self.top.label
        succ, more, done = self.name("next"), self.name("more"), self.name("done")
        self.goto(loop.head)
        self.start(loop.head)
        self.do(f"{loop.ssa} = phi i64 [ 0, {entry} ], [ {succ}, {level.label} ]")
        self._phis(loop, entry, level.label)
        self.top.lines += level.lines
        self.do(f"{succ} = add nuw nsw i64 {loop.ssa}, 1")
        self.do(f"{more} = icmp slt i64 {succ}, {turns}")
        if loop.more != "true":
            more = self.op(f"and i1 {more}, {loop.more}")
        self.do(f"br i1 {more}, label {loop.head}, label {done}")
        self.start(done)
        loop.result = loop.next

    def _phis(self, loop: Loop, entry: str, latch: str):
        for (ty, first), ssa, new in zip(loop.phis, loop.phi, loop.next, strict=True):
            self.do(f"{ssa} = phi {ty} [ {first}, {entry} ], [ {new}, {latch} ]")

    @contextmanager
    def while_loop(
        self, ty: str, low: str, high: str, step: str, phis: list[tuple[str, str]] = (), signed: bool = True
    ):
        """for iv in range(low, high, step) with runtime bounds, perhaps no turn at all; yields a Loop."""
        loop = Loop(self, phis)
        body = self.name("body")
        level = self.push(body)
        yield loop
        self.pop()
        entry = self.top.label
        succ, more, done = self.name("next"), self.name("more"), self.name("done")
        self.goto(loop.head)
        self.start(loop.head)
        self.do(f"{loop.ssa} = phi {ty} [ {low}, {entry} ], [ {succ}, {level.label} ]")
        self._phis(loop, entry, level.label)
        self.do(f"{more} = icmp {'slt' if signed else 'ult'} {ty} {loop.ssa}, {high}")
        self.do(f"br i1 {more}, label {body}, label {done}")
        self.start(body)
        self.top.lines += level.lines
        self.do(f"{succ} = add {ty} {loop.ssa}, {step}")
        self.goto(loop.head)
        self.start(done)
        loop.result = loop.phi

    @contextmanager
    def when(self, condition: str):
        """The code inside runs where `condition` (i1) holds."""
        then, done = self.name("then"), self.name("done")
        level = self.push(then)
        yield
        self.pop()
        self.do(f"br i1 {condition}, label {then}, label {done}")
        self.start(then)
        self.top.lines += level.lines
        self.top.label = level.label
        self.goto(done)
        self.start(done)

    @contextmanager
    def probe(self, extent: int):
        """A loop variable to ask questions with: what is written at its level is thrown away."""
        yield Iv(self.name("iv"), self.push(self.name("probe")).depth, extent)
        self.pop()

    @contextmanager
    def arm(self, label: str = "arm", closed: bool = False):
        """Code to be placed by `branch`: yields its level, a closed one if nothing is to be done for it before."""
        yield self.push(self.name(label), closed)
        self.pop()

    def branch(self, condition: str, then: Level, other: Level) -> tuple[str, str]:
        """if/else over two written arms. Returns the labels in which they end."""
        done = self.name("done")
        self.do(f"br i1 {condition}, label {then.start}, label {other.start}")
        for level in (then, other):
            self.start(level.start)
            self.top.lines += level.lines
            self.top.label = level.label
            self.goto(done)
        self.start(done)
        return then.label, other.label

    def inline(self, arm: Level):
        """Place an arm's code here without a branch."""
        self.goto(arm.start)
        self.start(arm.start)
        self.top.lines += arm.lines
        self.top.label = arm.label


class Loop:
    """A loop being written: `.phi` are its carried values, `.next` theirs after this turn; `.result` after the loop."""

    def __init__(self, code: Code, phis):
        self.ssa, self.head = code.name("iv"), code.name("head")
        self.depth = len(code.levels)
        self.phis = list(phis)
        self.phi = [code.name("phi") for _ in phis]
        self.next: list[str] = list(self.phi)
        self.more = "true"  # whether another turn is wanted (i1); `while_loop` does not ask
        self.result: list[str] = []
        self.iv: Iv | None = None
