"""TTIR function → LLVM IR text: statements, control flow and the loop nests that tensors become.

The result is one function that runs a range of the grid:

    void kernel(ptr arguments, ptr scratch, i64 first, i64 last)

`arguments` holds the kernel's arguments in 8-byte slots, then the three grid sizes (i32, a slot each); `scratch` is private
to the calling thread, `Lowered.scratch` bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from . import control, dot, ir, lanewise, reduce
from .code import Code, Level
from .checks import Check, Checks
from .elements import PURE, Buffer, Elements, Fixed, Index, Moving, mask_at
from .errors import UnsupportedOp
from .plan import SHAPE, Plan
from .target import Target
from .values import FALSE, MEM, REG, SIZE, TRUE, Aff, Ptr, Uni, Val, Vec, const, index, is_uniform, lanes

STATEMENTS: dict[str, Callable] = {}


def statement(*names):
    def register(function):
        STATEMENTS.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass(frozen=True)
class Lowered:
    name: str
    llvm: str
    scratch: int  # bytes per thread
    arguments: tuple[str, ...]  # element types, "ptr" for pointers
    checks: tuple[Check, ...]  # in debug mode


def lower(function: ir.Op, target: Target, fuse: bool = True, debug: bool = False) -> Lowered:
    return Lowering(function, target, fuse, debug).run()


class Lowering:
    def __init__(self, function: ir.Op, target: Target, fuse: bool, debug: bool):
        self.function, self.target = function, target
        self.code = Code()
        self.elements = Elements(self.code, fuse)
        if debug:
            self.elements.checks = Checks(function, self.elements)
        self.plan = Plan(function)
        self.used = self.high_water = 0  # scratch bytes
        self.deferred: dict[ir.Op, Callable[[], None]] = {}  # stores that finish a product in its registers
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
        code.do("ret void")
        text = [f"target triple = \"{self.target.triple}\"", *code.globals.values()]
        text.append(f"define void @{name}(ptr noalias nocapture %arguments, ptr noalias %scratch, i64 %first, i64 %last) #0 {{")
        text += ["entry:", *code.levels[0].lines, "}", *code.declared.values()]
        width = self.target.vector_bytes * 8
        text.append(f'attributes #0 = {{ nounwind "target-cpu"="{self.target.cpu}" "target-features"="{self.target.features}" "prefer-vector-width"="{width}" "no-trapping-math"="true" }}')
        scratch = (self.high_water + 4095) // 4096 * 4096
        made = tuple(e.checks.made) if e.checks else ()
        return Lowered(name, "\n".join(text) + "\n", scratch, tuple(t.elem for t in arguments), made)

    def argument(self, slot: int, elem: str) -> str:
        at = self.code.pure(0, f"getelementptr i8, ptr %arguments, i64 {8 * slot}")
        return self.code.op(f"load {MEM[elem]}, ptr {at}, align 8")

    def block(self, block: ir.Block):
        for op in block.ops:
            rule = STATEMENTS.get(op.name)
            if rule:
                rule(self, op)
            elif op.name in PURE:
                if op.result in self.plan.kept:
                    self.keep(op.result)
            else:
                raise UnsupportedOp(op)

    def region(self, block: ir.Block):
        """A nested body: memory is read inside it, and its scratch is free again after it."""
        outer, used = self.elements.region, self.used
        self.elements.region = self.code.depth
        self.block(block)
        self.elements.region = outer
        return used

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
        body = lambda idx: self.elements.at(value, idx)  # noqa: E731
        if dest is None:
            dest = self.destinations.get(value)
        if dest is None:
            dest = self.allocate(value.type.elem, value.type.shape, self.order(value.type, body))
        self.fill(dest, body)
        self.elements.bound[value] = dest
        return dest

    def fill(self, dest: Buffer, body: Callable[[Index], Val]):
        def write(idx):
            v = body(idx)
            self.elements.store(dest.pointer(self.elements, idx), v._replace(elem=dest.stored), TRUE)

        lane = max(range(len(dest.shape)), key=lambda d: (dest.shape[d] > 1, -dest.strides[d])) if dest.shape else None
        self.nest(dest.shape, write, dest.elem, lane)

    def buffer(self, value: ir.Value) -> Buffer:
        """The buffer a tensor is in; computed into one if it is not."""
        held = self.elements.bound.get(value)
        return held if isinstance(held, Buffer) else self.keep(value)

    # ---- loop nests -----------------------------------------------------------------------------------------------

    def nest(self, shape: tuple[int, ...], body: Callable[[Index], None], elem: str, lane: int | None = None):
        """Runs `body` over all indices of `shape`, one dimension in vector lanes."""
        e, outer = self.elements, self.elements.width
        if lane is None:
            lane = self.order_of(shape, body, elem)[-1] if shape else None
        width = min(shape[lane], 2 * self.target.lanes(max(4, SIZE[elem]))) if shape else 1
        with ExitStack() as loops:
            idx = []
            for d, n in enumerate(shape):
                step = width if d == lane else 1
                if n == step:
                    at = const("index", 0)
                else:
                    at = index(loops.enter_context(self.code.loop(n, step)).iv)
                idx.append(lanes(at) if d == lane and width > 1 else at)
            e.width = width
            self.speculate(lambda: body(tuple(idx)))
        e.width = outer

    def speculate(self, body: Callable[[], None]):
        """Writes `body` assuming that masks are full and runs unbroken; where that has to be checked, also without."""
        e, code = self.elements, self.code
        if e.assumed is not None:
            return body()
        e.assumed, e.assume_depth = [], code.depth
        floor = e.floor
        with code.arm("fast") as fast:
            e.floor = fast.depth
            body()
        conditions, e.assumed = e.assumed, None
        if not conditions:
            e.floor = floor
            return code.inline(fast)
        with code.arm("slow") as slow:
            body()
        e.floor = floor
        conditions = list(dict.fromkeys(conditions))
        ok = conditions[0]
        for c in conditions[1:]:
            ok = code.op(f"and i1 {ok}, {c}")
        code.branch(ok, fast, slow)

    def order(self, type: ir.Type, body) -> tuple[int, ...]:
        return self.order_of(type.shape, lambda idx: body(idx) and None, type.elem)

    def order_of(self, shape: tuple[int, ...], body: Callable[[Index], None], elem: str) -> tuple[int, ...]:
        """Dimensions from slowest to fastest: the fastest is the one along which memory is best read and written."""
        wide = [d for d in reversed(range(len(shape))) if shape[d] > 1]
        if len(wide) > 1:
            best = min(wide, key=lambda d: (self.probe(shape, body, elem, d), -d))
        else:
            best = wide[0] if wide else len(shape) - 1
        return tuple(d for d in range(len(shape)) if d != best) + (best,)

    def probe(self, shape, body, elem: str, lane: int) -> float:
        """Cost per element of `body` with its lanes along `lane`: writes it to a level that is thrown away."""
        e, code, depth = self.elements, self.code, self.code.depth
        saved = e.width, e.spent, e.assumed
        e.width, e.spent = min(shape[lane], self.target.lanes(4)), 0
        e.assumed, e.assume_depth = [], depth + len(shape)
        with ExitStack() as levels:
            at = [index(levels.enter_context(code.probe(n))) if n > 1 else const("index", 0) for n in shape]
            levels.enter_context(code.probe(1))
            body(tuple(lanes(i) if d == lane else i for d, i in enumerate(at)))
            cost = (e.spent + 1) / e.width
        e.width, e.spent, e.assumed = saved
        return cost


# ---- scalars and memory -----------------------------------------------------------------------------------------------


@statement("tt.get_program_id")
def _program_id(low: Lowering, op):
    low.elements.bound[op.result] = Fixed(Aff("i32", ((1, low.program[op.int("axis")]),), (), 0, 0))


@statement("tt.get_num_programs")
def _num_programs(low: Lowering, op):
    low.elements.bound[op.result] = Fixed(Aff("i32", ((0, low.grid[op.int("axis")]),), (), 0, 0))


def _load_rule(e: Elements, op, idx):
    """A load inside the nest that uses it, or of a scalar."""
    return e.read(op, idx, mask_at(e, op.operands[1], idx) if len(op.operands) > 1 else TRUE)


PURE["tt.load"] = _load_rule


@statement("tt.load")
def _load(low: Lowering, op):
    e = low.elements
    if not op.result.type.rank:
        e.bound[op.result] = Fixed(e.at(op.result))
    elif op not in low.plan.fused:
        low.keep(op.result)


def write_store(e: Elements, op: ir.Op, idx: Index):
    mask = mask_at(e, op.operands[2], idx) if len(op.operands) > 2 else TRUE
    p = e.pointer(e.at(op.operands[0], idx))
    e.store(p, e.at(op.operands[1], idx), e.checked(op, p, mask, e.code.depth))


@statement("tt.split")
def _split(low: Lowering, op):
    """The halves of the last dimension are views of one buffer."""
    whole = low.buffer(op.operands[0])
    for i, result in enumerate(op.results):
        start = whole.pointer(low.elements, (*[const("index", 0)] * len(whole.shape[:-1]), const("index", i)))
        low.elements.bound[result] = Buffer(start, whole.elem, whole.shape[:-1], whole.strides[:-1])


@statement("tt.store")
def _store(low: Lowering, op):
    if op in low.deferred:
        return low.deferred.pop(op)()
    type = op.operands[1].type
    low.nest(type.shape or (), lambda idx: write_store(low.elements, op, idx), type.elem)


_RMW = {1: "and", 2: "or", 3: "xor", 4: "add", 5: "fadd", 6: "max", 7: "min", 8: "umax", 9: "umin", 10: "xchg"}


@statement("tt.atomic_rmw", "tt.atomic_cas")
def _atomic(low: Lowering, op):
    """One lane after another; lanes that are masked off return 0."""
    e, code, type = low.elements, low.code, op.result.type
    ty, ordering = MEM[type.elem], "seq_cst"
    dest = low.allocate(type.elem, type.shape) if type.rank and op.result.users else None

    def write(idx):
        p = e.pointer(e.at(op.operands[0], idx))
        raw = [e.to_memory(e.at(v, idx), 0)[0] for v in op.operands[1 : 3 if op.name.endswith("cas") else 2]]
        mask = TRUE
        if op.name.endswith("rmw") and len(op.operands) > 2:
            mask = e.at(op.operands[2], idx)
        mask = e.checked(op, p, mask, code.depth)
        address = e.address(p)[0]
        with code.arm("on") as on:
            if op.name.endswith("cas"):
                # floats are compared by their bits
                bits = f"i{8 * SIZE[type.elem]}"
                if ty != bits:
                    raw = [code.op(f"bitcast {ty} {r} to {bits}") for r in raw]
                pair = code.op(f"cmpxchg ptr {address}, {bits} {raw[0]}, {bits} {raw[1]} {ordering} {ordering}")
                old = code.op(f"extractvalue {{ {bits}, i1 }} {pair}, 0")
                old = old if ty == bits else code.op(f"bitcast {bits} {old} to {ty}")
            else:
                how = _RMW[op.int("atomic_rmw_op")]
                if type.is_float and how in ("max", "min"):
                    how = "f" + how
                old = code.op(f"atomicrmw {how} ptr {address}, {ty} {raw[0]} {ordering}, align {SIZE[type.elem]}")
        with code.arm("off") as off:
            pass
        zero = "zeroinitializer"
        ends = code.branch(mask.ssa, on, off)
        before = code.op(f"phi {ty} [ {old}, {ends[0]} ], [ {zero}, {ends[1]} ]")
        result = e.from_memory(type.elem, before, code.depth, 0)
        if dest:
            e.store(dest.pointer(e, idx), result._replace(elem=dest.stored), TRUE)
        elif not type.rank:
            e.bound[op.result] = Fixed(result)

    outer, e.width = e.width, 1
    with ExitStack() as loops:
        write(tuple(index(loops.enter_context(code.loop(n)).iv) for n in type.shape or ()))
    e.width = outer
    if dest:
        e.bound[op.result] = dest


# ---- control flow -----------------------------------------------------------------------------------------------------


@statement("tt.assert")
def _assert(low: Lowering, op):
    """Triton's front end leaves assertions out unless it compiles in debug mode."""
    condition = op.operands[0]
    low.nest(condition.type.shape or (), lambda idx: low.elements.checks.assertion(op, low.elements.at(condition, idx)), "i1")


@statement("ttg.barrier", "gpu.barrier", "llvm.intr.assume", "ttg.async_wait", "tt.debug_barrier")
def _nothing(low: Lowering, op):
    """One thread runs a program in order: there is nothing to wait for."""


@statement("scf.if")
def _if(low: Lowering, op):
    e, code = low.elements, low.code
    condition = e.at(op.operands[0])
    dests = [low.allocate(r.type.elem, r.type.shape) if r.type.rank else None for r in op.results]
    arms: list[Level] = []
    scalars: list[list[str]] = []
    for blocks in op.regions:
        with code.arm() as arm:
            if blocks:
                used = low.region(blocks[0])
                values = blocks[0].ops[-1].operands
                for value, dest in zip(values, dests, strict=True):
                    if dest:
                        low.fill(dest, lambda idx, value=value: e.at(value, idx))
                scalars.append([e.scalar(e.at(v))[0] for v in values if not v.type.rank])
                low.used = used
        arms.append(arm)
    ends = code.branch(condition.ssa, *arms)
    position = 0
    for result, dest in zip(op.results, dests, strict=True):
        if dest:
            e.bound[result] = dest
            continue
        pair = ", ".join(f"[ {s[position]}, {end} ]" for s, end in zip(scalars, ends, strict=True))
        ssa = code.op(f"phi {REG[result.type.elem]} {pair}")
        e.bound[result] = Fixed(e.wrap(result.type.elem, ssa, code.depth, 0))
        position += 1


@statement("scf.yield", "tt.reduce.return", "tt.scan.return", "tt.map_elementwise.return", "scf.condition")
def _terminator(low: Lowering, op):
    """Read by the operation whose body it ends."""


@dataclass
class Carried:
    """A loop-carried value: a scalar, a moving integer/pointer tensor, or a tensor in memory."""

    value: ir.Value  # the body's argument
    first: ir.Value
    last: ir.Value  # what the body yields
    step: ir.Value | None = None  # scalar that a moving tensor advances by
    buffers: tuple[Buffer, ...] = ()  # two that swap, or one that is updated in place
    spare: Buffer | None = None  # where the next turn's value goes


def moving_step(argument: ir.Value, last: ir.Value) -> ir.Value | None:
    """The scalar s if the loop's body turns the tensor `argument` into `argument + s`."""
    op = last.op
    if op is None or op.name not in ("tt.addptr", "arith.addi") or argument not in op.operands:
        return None
    by = op.operands[1] if op.operands[0] is argument else op.operands[0]
    while by.op and by.op.name == "tt.broadcast":
        by = by.op.operands[0]
    if by.op and by.op.name in ("tt.splat", "arith.constant"):
        return by
    return None


def _elementwise(argument: ir.Value, last: ir.Value) -> bool:
    """Whether every use of `argument` goes, index by index, into `last` alone: the new value may then overwrite the old."""
    for user in argument.users:
        if user.name == "tt.dot":
            if user.result is not last or argument in user.operands[:2] or len(last.users) != 1:
                return False
        elif user.name not in PURE or user.name in SHAPE or user.block is not last.op.block:
            return False
        elif user.result is last:
            if len(last.users) != 1:
                return False
        elif not _elementwise(user.result, last):
            return False
    return bool(argument.users)


class ForLoop:
    """What `scf.for` carries from turn to turn, as LLVM phis. Also used by the fused matrix product."""

    def __init__(self, low: Lowering, op: ir.Op, skip: tuple[ir.Value, ...] = ()):
        self.low, self.op = low, op
        body = op.body
        self.carried: list[Carried] = []
        for first, argument, last in zip(op.operands[3:], body.args[1:], body.ops[-1].operands, strict=True):
            item = Carried(argument, first, last)
            if argument not in skip:
                if argument.type.rank and not argument.type.is_float:
                    item.step = moving_step(argument, last)
                if argument.type.rank and item.step is None:
                    one = last.op is not None and last.op.block is body and _elementwise(argument, last)
                    item.buffers = tuple(low.allocate(argument.type.elem, argument.type.shape) for _ in range(1 if one else 2))
                self.carried.append(item)

    def bounds(self) -> tuple[str, str, str, str]:
        values = [self.low.elements.at(v) for v in self.op.operands[:3]]
        return REG[values[0].elem], *(self.low.elements.scalar(v)[0] for v in values)

    def phis(self) -> list[tuple[str, str]]:
        low, e, out = self.low, self.low.elements, []
        for c in self.carried:
            if c.buffers:
                low.fill(c.buffers[0], lambda idx, c=c: e.at(c.first, idx))
                out += [("ptr", e.address(b.base)[0]) for b in c.buffers if len(c.buffers) == 2]
            elif c.step:
                out.append(("i64" if c.value.type.elem == "ptr" else REG[c.value.type.elem], "0"))
            else:
                out.append((REG[c.value.type.elem], e.scalar(e.at(c.first))[0]))
        return out

    def bind(self, ssa: str, phi: list[str], depth: int, values: list[ir.Value], counter: bool = True):
        """Gives the body's arguments (or, after the loop, its results) their values."""
        e, at = self.low.elements, iter(phi)
        if counter:
            e.bound[self.op.body.args[0]] = Fixed(Aff(self.op.body.args[0].type.elem, ((depth, ssa),), (), 0, 0))
        for c, value in zip(self.carried, values, strict=True):
            elem = value.type.elem
            if len(c.buffers) == 1:
                e.bound[value] = c.spare = c.buffers[0]
            elif c.buffers:
                current, other = next(at), next(at)
                c.spare = replace(c.buffers[1], base=Ptr(other, depth, const("i64", 0)))
                e.bound[value] = Buffer(Ptr(current, depth, const("i64", 0)), elem, value.type.shape, c.buffers[0].strides)
            elif c.step:
                e.bound[value] = Moving(c.first, Aff("i64" if elem == "ptr" else elem, ((depth, next(at)),), (), 0, 0))
            else:
                e.bound[value] = Fixed(e.wrap(elem, next(at), depth, 0))

    def arguments(self) -> list[ir.Value]:
        return [c.value for c in self.carried]

    def aim(self):
        """Values that the body yields are best computed right into the buffer of the next turn."""
        for c in self.carried:
            if c.buffers and c.last.op and c.last.op.block is self.op.body and c.last.users == [self.op.body.ops[-1]]:
                self.low.destinations[c.last] = c.spare

    def advance(self, phi: list[str], depth: int) -> list[str]:
        """The values for the next turn, computed at the end of the body."""
        low, e, out, at = self.low, self.low.elements, [], iter(phi)
        for c in self.carried:
            if c.buffers:
                held = e.bound.get(c.last)
                if not (isinstance(held, Buffer) and held.base == c.spare.base):
                    low.fill(c.spare, lambda idx, c=c: e.at(c.last, idx))
                if len(c.buffers) == 2:
                    current, other = next(at), next(at)
                    out += [other, current]
            elif c.step:
                offset = Aff("i64" if c.value.type.elem == "ptr" else c.value.type.elem, ((depth, next(at)),), (), 0, 0)
                by = e.at(c.step, (const("index", 0),) * c.step.type.rank)
                if c.value.type.elem == "ptr":
                    by = e.mul(e.cast(by, "i64"), const("i64", SIZE[c.value.type.pointee]))
                out.append(e.scalar(e.add(offset, by))[0])
            else:
                next(at)
                out.append(e.scalar(e.at(c.last))[0])
        return out


@statement("scf.for")
def _for(low: Lowering, op):
    if dot.fused_loop(low, op):
        return
    code, used = low.code, low.used
    state = ForLoop(low, op)
    held = low.used
    ty, first, last, step = state.bounds()
    with code.while_loop(ty, first, last, step, state.phis()) as loop:
        state.bind(loop.ssa, loop.phi, loop.depth, state.arguments())
        state.aim()
        outer, low.elements.region = low.elements.region, loop.depth
        low.block(op.body)
        loop.next = state.advance(loop.phi, loop.depth)
        low.elements.region = outer
    state.bind("", loop.result, code.depth, op.results, counter=False)
    low.used = held if op.results else used


statement("tt.histogram")(lanewise.lower_histogram)
statement("tt.map_elementwise")(lanewise.lower_map)
statement("tt.print")(lanewise.lower_print)
statement("scf.while")(control.lower_while)
statement("cf.br", "cf.cond_br")(control.lower_jump)
statement("tt.return")(control.lower_return)
statement("tt.dot")(dot.lower_dot)
statement("tt.reduce")(reduce.lower_reduce)
statement("tt.scan")(reduce.lower_scan)
__all__ = ["FALSE", "Lowered", "Uni", "Vec", "is_uniform", "lower"]
