"""TTIR function → LLVM IR text: statements, control flow and the loop nests that tensors become.

The result is one function that runs a range of the grid:

    void kernel(ptr arguments, ptr scratch, i64 first, i64 last)

`arguments` holds the kernel's arguments in 8-byte slots, then the three grid sizes (i32, a slot each); `scratch` is
private to the calling thread, `Lowered.scratch` bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from . import ahead, control, dot, floats, integers, ir, lanewise, layout, memory, reduce, shapes, sliding, turning  # noqa: F401  their rules fill the table PURE
from .checks import Check, Checks
from .code import Code
from .elements import PURE, Buffer, Elements, Fixed, Recorded
from .errors import UnsupportedOp
from .plan import Plan
from .target import Target
from .values import MEM, SIZE, Aff, Ptr, const, index, lanes, shift

# operation → what writes its code, given the Lowering and the operation
STATEMENTS: dict[str, Callable] = {
    "tt.get_program_id": memory.lower_program_id,
    "tt.get_num_programs": memory.lower_num_programs,
    "tt.load": memory.lower_load,
    "tt.split": memory.lower_split,
    "tt.store": memory.lower_store,
    "tt.atomic_rmw": lanewise.lower_atomic,
    "tt.atomic_cas": lanewise.lower_atomic,
    "tt.assert": control.lower_assert,
    "ttg.barrier": control.lower_nothing,
    "gpu.barrier": control.lower_nothing,
    "llvm.intr.assume": control.lower_nothing,
    "ttg.async_wait": control.lower_nothing,
    "tt.debug_barrier": control.lower_nothing,
    "scf.if": control.lower_if,
    "scf.yield": control.lower_terminator,
    "tt.reduce.return": control.lower_terminator,
    "tt.scan.return": control.lower_terminator,
    "tt.map_elementwise.return": control.lower_terminator,
    "scf.condition": control.lower_terminator,
    "scf.for": control.lower_for,
    "scf.while": control.lower_while,
    "cf.br": control.lower_jump,
    "cf.cond_br": control.lower_jump,
    "tt.return": control.lower_return,
    "tt.dot": dot.lower_dot,
    "tt.reduce": reduce.lower_reduce,
    "tt.scan": reduce.lower_scan,
    "tt.histogram": lanewise.lower_histogram,
    "tt.map_elementwise": lanewise.lower_map,
    "tt.print": lanewise.lower_print,
}

Registers = list[tuple[str, str]]  # (LLVM type, SSA name)


@dataclass(frozen=True)
class Lowered:
    name: str
    llvm: str
    scratch: int  # bytes per thread
    arguments: tuple[str, ...]  # element types, "ptr" for pointers
    checks: tuple[Check, ...]  # in debug mode


class Lowering:
    def __init__(self, function: ir.Op, target: Target, fuse: bool, debug: bool, disjoint: bool):
        self.function, self.target = function, target
        self.code = Code()
        self.elements = Elements(self.code, target, fuse)
        if debug:
            self.elements.checks = Checks(function, self.elements)
        self.plan = Plan(function, disjoint)
        self.used = self.high_water = 0  # scratch bytes
        self.labels: dict[str, str] = {}  # where jumps in the body being written lead to
        self.doors: dict[str, list[Buffer]] = {}  # what they hand over
        self.ahead = ahead.rows(self.plan, function.body)
        self.deferred: dict[ir.Op, Callable[[], None]] = {}  # stores that finish a product in its registers
        self.recording: dict[ir.Op, list[tuple[ir.Value, Buffer]]] = {}  # a root → what its nest writes to buffers
        self.destinations: dict[ir.Value, Buffer] = {}  # where a kept value is wanted

    # ---- the function ---------------------------------------------------------------------------------------------

    def run(self) -> Lowered:
        name = self.function.attrs["sym_name"].strip('"')
        code, entry, e = self.code, self.function.body, self.elements
        for slot, value in enumerate(entry.args):
            e.bound[value] = Fixed(e.from_memory(value.type.elem, self.argument(slot, value.type.elem), 0, 0))
        arguments = [*(v.type for v in entry.args), *(e.checks.arguments if e.checks else ())]
        self.grid = [self.argument(len(arguments) + axis, "i32") for axis in range(3)]
        with code.while_loop("i64", "%first", "%last", "1") as loop:
            pid = code.pure(1, f"trunc i64 {loop.ssa} to i32")
            yz = code.pure(1, f"udiv i32 {pid}, {self.grid[0]}")
            self.program = (
                code.pure(1, f"urem i32 {pid}, {self.grid[0]}"),
                code.pure(1, f"urem i32 {yz}, {self.grid[1]}"),
                code.pure(1, f"udiv i32 {yz}, {self.grid[1]}"),
            )
            if e.checks:
                e.checks.program = loop.ssa
            self.end = code.name("end")
            e.region = 1
            control.place_blocks(self, self.function.regions[0])
            code.start(self.end)
        if e.streamed:
            code.do("fence seq_cst")  # a plain store that says it is done may not overtake them
        code.do("ret void")
        text = [f'target triple = "{self.target.triple}"', *code.globals.values()]
        text.append(
            f"define void @{name}(ptr noalias nocapture %arguments, ptr noalias %scratch, i64 %first, i64 %last) #0 {{"
        )
        text += ["entry:", *code.levels[0].lines, "}", *code.declared.values()]
        width = self.target.vector_bytes * 8
        text.append(
            f'attributes #0 = {{ nounwind "target-cpu"="{self.target.cpu}" "target-features"="{self.target.features}" '
            f'"prefer-vector-width"="{width}" "no-trapping-math"="true" }}'
        )
        scratch = (self.high_water + 4095) // 4096 * 4096
        made = tuple(e.checks.made) if e.checks else ()
        return Lowered(name, "\n".join(text) + "\n", scratch, tuple(t.elem for t in arguments), made)

    def argument(self, slot: int, elem: str) -> str:
        at = self.code.pure(0, f"getelementptr i8, ptr %arguments, i64 {8 * slot}")
        return self.code.op(f"load {MEM[elem]}, ptr {at}, align 8")

    def block(self, block: ir.Block):
        for op in block.ops:
            self.statement(op)
            for value, dest in self.recording.pop(op, ()):
                self.elements.bound[value] = dest

    def statement(self, op: ir.Op):
        rule = STATEMENTS.get(op.name)
        if rule:
            rule(self, op)
        elif op.name not in PURE:
            raise UnsupportedOp(op)
        elif op.result in self.plan.recorded:
            self.record(op.result)
        elif op.result in self.plan.kept:
            self.keep(op.result)

    @contextmanager
    def nested(self):
        """Around what writes a nested body: memory is read inside it, and its scratch is free again after it."""
        outer, used = self.elements.region, self.used
        self.elements.region = self.code.depth
        yield
        self.elements.region, self.used = outer, used

    # ---- scratch memory -------------------------------------------------------------------------------------------

    def allocate(self, elem: str, shape: tuple[int, ...], order: tuple[int, ...] | None = None) -> Buffer:
        """Scratch for a tensor; `order` lists its dimensions from the slowest to the fastest."""
        strides, step = [0] * len(shape), 1
        for d in reversed(order or range(len(shape))):
            strides[d], step = step, step * shape[d]
        stored = "f32" if elem in ("f16", "bf16") else elem
        at, self.used = self.used, self.used + (step * SIZE[stored] + 63) // 64 * 64
        self.high_water = max(self.high_water, self.used)
        return Buffer(Ptr("%scratch", 0, const("i64", at)), elem, shape, tuple(strides))

    def keep(self, value: ir.Value, dest: Buffer | None = None) -> Buffer:
        """Computes a tensor into a buffer, now; later uses read the buffer."""
        if dest is None:
            dest = self.destinations.get(value)
        if dest is None:
            order = layout.order(self, value.type.shape, partial(self.elements.at, value))
            dest = self.allocate(value.type.elem, value.type.shape, order)
        self.fill(dest, value)
        self.elements.bound[value] = dest
        return dest

    def record(self, value: ir.Value):
        """Has the nest of the root that asks for a tensor's elements first write them to a buffer, for the others."""
        dest = self.destinations.get(value) or self.allocate(value.type.elem, value.type.shape)
        self.elements.bound[value] = Recorded(value, dest)
        self.recording.setdefault(self.plan.recorded[value], []).append((value, dest))

    def fill(self, dest: Buffer, value: ir.Value):
        e, body = self.elements, partial(self.elements.at, value)

        def write(*places):
            for idx, v in zip(places, list(map(body, places)), strict=True):
                dest.store(e, idx, v)

        lane = max(range(len(dest.shape)), key=lambda d: (dest.shape[d] > 1, -dest.strides[d])) if dest.shape else None
        along = None if lane is None else turning.source(self, dest, body, lane)
        if along is None:
            self.nest(dest.shape, write, dest.elem, lane, value=value)
        else:
            turning.fill(self, dest, body, lane, along)

    def buffer(self, value: ir.Value) -> Buffer:
        """The buffer a tensor is in; computed into one if it is not."""
        held = self.elements.bound.get(value)
        return held if isinstance(held, Buffer) else self.keep(value)

    # ---- loop nests -----------------------------------------------------------------------------------------------

    def nest(
        self, shape: tuple[int, ...], body: Callable[..., None], elem: str, lane: int | None = None, vectors=2,
        value: ir.Value | None = None,
    ):  # fmt: skip
        """Runs `body` over all indices of `shape`, one dimension in lanes of `vectors` registers. Where rows of `value`
        read what the next ones read (`sliding`), `body` takes several indices at once, each of one register."""
        e, outer = self.elements, self.elements.width
        if lane is None:
            lane = layout.order(self, shape, body)[-1] if shape else None
        lanes_of = self.target.lanes(max(4, SIZE[elem]))
        e.width = width = min(shape[lane], lanes_of) if shape else 1
        along = None if value is None or width == 1 else sliding.dimension(self, value, lane)
        if along is None and shape:
            width = min(shape[lane], vectors * lanes_of)
        with ExitStack() as loops:
            idx = []
            for d, n in enumerate(shape):
                step = width if d == lane else sliding.ROWS if d == along else 1
                at = self.turns(loops, n, step)
                idx.append(lanes(at) if d == lane and width > 1 else at)
            rows = range(1 if along is None else sliding.ROWS)
            places = [tuple(shift(i, row) if d == along else i for d, i in enumerate(idx)) for row in rows]
            e.width = width
            self.speculate(lambda: body(*places), hoist=True)
        e.width = outer

    def turns(self, loops: ExitStack, n: int, step: int) -> Aff:
        """An index from 0 to `n` in steps, by a loop that ends with `loops`; by none where there is a single turn."""
        return const("index", 0) if n == step else index(loops.enter_context(self.code.loop(n, step)).iv)

    def speculate(self, body: Callable[[], Registers | None], hoist: bool = False) -> Registers | None:
        """Writes `body` assuming that masks are full and runs unbroken; where that has to be checked, also without.
        Returns the registers that it leaves, if any.

        `hoist`: where nothing had to be assumed, vectors are read on the level that their address depends on.
        """
        e, code = self.elements, self.code
        if e.assumed is not None:
            return body()
        e.assumed, e.assume_depth = [], code.depth
        floor, e.held = e.floor, False
        with code.arm("fast") as fast:
            e.floor = fast.depth
            left = body()
        conditions, e.assumed = e.assumed, None
        if not conditions:
            e.floor = floor
            if hoist and e.held:
                with code.arm() as fast:
                    left = body()
            code.inline(fast)
            return left
        with code.arm("slow") as slow:
            other = body()
        e.floor = floor
        conditions = list(dict.fromkeys(conditions))
        ok = conditions[0]
        for c in conditions[1:]:
            ok = code.op(f"and i1 {ok}, {c}")
        a, b = code.branch(ok, fast, slow)
        return left and [
            (ty, code.op(f"phi {ty} [ {x}, {a} ], [ {y}, {b} ]")) for (ty, x), (_, y) in zip(left, other, strict=True)
        ]
