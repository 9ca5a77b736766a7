"""Loads and stores: of whole vectors where lanes lie side by side, else lane by lane, under masks."""

from __future__ import annotations

from . import avx2
from .affine import Affine
from .code import Code
from .target import Target
from .values import MEM, SIZE, Aff, Ptr, Uni, Val, is_uniform

LINE = 64  # bytes of memory that are read and written at once


class Access(Affine):
    """Reads and writes memory at addresses that are `Affine`."""

    def __init__(self, code: Code, target: Target):
        super().__init__(code)
        self.target = target
        self.floor = 0  # vectors are read no further out than this level: their addresses may rest on an assumption
        self.held = False  # whether a plain vector was read further in than it need be, for that reason
        self.streamed = False  # whether a store was written that the caches do not see
        self.spent = 0  # accesses written that are not plain vector moves

    def guarded(self, p: Ptr, mask: Uni, size: int) -> Ptr:
        """`p` where the mask holds, else a place in a block of zeros from which the same bytes can be read.

        The choice is made on the mask's level: loop variables of deeper levels stay offsets on top of it.
        """
        deep = [(iv, c) for iv, c in p.off.ivs if iv.depth > mask.depth and c > 0]
        reach = sum((iv.extent - 1) * c for iv, c in deep)
        if reach > 1 << 16:
            deep, reach = [], 0
        # turns of an unrolled loop differ by a constant within its step, and share the choice
        near = p.off.const % min((c for _, c in deep), default=1)
        rest = tuple(x for x in p.off.ivs if x not in deep)
        ssa, at = self.address(p._replace(off=p.off._replace(ivs=rest, const=p.off.const - near)))
        depth = max(at, mask.depth)
        room = self.zeros(near + reach + size)
        chosen = self.code.pure(depth, f"select i1 {mask.ssa}, ptr {ssa}, ptr {room}")
        return Ptr(chosen, depth, Aff("i64", (), tuple(deep), near, p.off.step))

    def zeros(self, size: int) -> str:
        """A constant block of at least `size` zero bytes."""
        room = 1 << max(6, (size - 1).bit_length())
        return self.code.constant(f"zeros{room}", f"private constant [{room} x i8] zeroinitializer, align 64")

    def from_memory(self, elem: str, ssa: str, depth: int, width: int) -> Val:
        """A loaded register in computing form: bool from byte, half types as float."""
        code = self.code
        if elem == "i1":
            ty = f"<{width} x i8>" if width else "i8"
            ssa = code.pure(depth, f"icmp ne {ty} {ssa}, {'zeroinitializer' if width else 0}")
        elif elem == "f16":
            ty = (f"<{width} x half>", f"<{width} x float>") if width else ("half", "float")
            ssa = code.pure(depth, f"fpext {ty[0]} {ssa} to {ty[1]}")
        elif elem == "bf16":
            t16, t32, tf = (f"<{width} x {t}>" if width else t for t in ("i16", "i32", "float"))
            wide = code.pure(depth, f"zext {t16} {ssa} to {t32}")
            sixteen = self.splat("i32", "16", 0, width) if width else "16"
            wide = code.pure(depth, f"shl {t32} {wide}, {sixteen}")
            ssa = code.pure(depth, f"bitcast {t32} {wide} to {tf}")
        return self.wrap(elem, ssa, depth, width)

    def to_memory(self, v: Val, width: int) -> tuple[str, str]:
        """(SSA name, LLVM type) of a value in the form it has in memory, as a scalar (width 0) or vector."""
        ssa, depth = self.vector(v, width) if width else self.scalar(v)
        ty = f"<{width} x {MEM[v.elem]}>" if width else MEM[v.elem]
        code = self.code
        if v.elem == "i1":
            ssa = code.pure(depth, f"zext {f'<{width} x i1>' if width else 'i1'} {ssa} to {ty}")
        elif v.elem == "f16":
            ssa = code.pure(depth, f"fptrunc {f'<{width} x float>' if width else 'float'} {ssa} to {ty}")
        elif v.elem == "bf16":
            t32, tf = (f"<{width} x {t}>" if width else t for t in ("i32", "float"))
            bits = code.pure(depth, f"bitcast {tf} {ssa} to {t32}")
            sixteen = self.splat("i32", "16", 0, width) if width else "16"
            bits = code.pure(depth, f"lshr {t32} {bits}, {sixteen}")
            ssa = code.pure(depth, f"trunc {t32} {bits} to {ty}")
        return ssa, ty

    def load(self, p: Ptr, elem: str, mask: Val, other: Val | None, region: int) -> Val:
        """Loads one value (uniform address) or one vector; written no further out than the level `region`."""
        code, width, size = self.code, self.width, SIZE[elem]
        zero_other = other is None or (isinstance(other, Uni) and other.ssa.strip("-") in ("0.0", "0", "false")) or (
            isinstance(other, Aff) and other.is_const and other.const == 0
        )  # fmt: skip
        always = is_uniform(mask) and mask.ssa == "true"
        lanes = 0 if is_uniform(p) else width
        contiguous = isinstance(p.off, Aff) and p.off.step in (0, size)
        if contiguous and is_uniform(mask):
            if not always:
                p = self.guarded(p, mask, size * max(lanes, 1))
            ssa, depth = self.address(p)
            self.held |= lanes > 0 and max(depth, region) < self.floor
            depth = max(depth, self.floor if lanes else 0, region)
            ty = f"<{lanes} x {MEM[elem]}>" if lanes else MEM[elem]
            raw = code.op(f"load {ty}, ptr {ssa}, align {size}", depth)
            value = self.from_memory(elem, raw, depth, lanes)
            return value if always or zero_other else self.select(mask, value, other)
        self.cost(width if not contiguous else 1)
        ty = f"<{width} x {MEM[elem]}>"
        bits, dm = self.vector(mask)
        suffix = f"v{width}{_mangle(MEM[elem])}"
        if contiguous and p.off.step:
            ssa, depth = self.address(p._replace(off=p.off._replace(step=0)))
            depth = max(depth, dm, self.floor, region)
            if avx2.takes(self.target, MEM[elem], width):
                raw = avx2.masked_load(code, MEM[elem], ssa, bits, width, depth)
            else:
                f = code.intrinsic(f"llvm.masked.load.{suffix}.p0", ty, ("ptr", "i32", f"<{width} x i1>", ty))
                given = f"ptr {ssa}, i32 {size}, <{width} x i1> {bits}, {ty} zeroinitializer"
                raw = code.op(f"call {ty} {f}({given})", depth)
        else:
            ssa, depth = self.vector(p)
            depth = max(depth, dm, self.floor, region)
            f = code.intrinsic(
                f"llvm.masked.gather.{suffix}.v{width}p0", ty, (f"<{width} x ptr>", "i32", f"<{width} x i1>", ty)
            )
            raw = code.op(
                f"call {ty} {f}(<{width} x ptr> {ssa}, i32 {size}, <{width} x i1> {bits}, {ty} zeroinitializer)", depth
            )
        value = self.from_memory(elem, raw, depth, width)
        return value if always or zero_other else self.select(mask, value, other)

    def store(self, p: Ptr, v: Val, mask: Val, stream: bool = False):
        """Stores one value, or one vector of `width` lanes, at the current position; with `stream`, past the caches."""
        code, width, size = self.code, self.width, SIZE[v.elem]
        always = is_uniform(mask) and mask.ssa == "true"
        if is_uniform(mask) and not always:
            with code.when(mask.ssa):
                self.store(p, v, Uni("i1", "true", 0), stream)
            return
        if is_uniform(p) and always:
            lane = v
            if not is_uniform(v):  # every lane has the same address: the last one stays
                last = f"extractelement {self.typed(v.elem, width)} {v.ssa}, i64 {width - 1}"
                lane = self.wrap(v.elem, code.pure(v.depth, last), v.depth, 0)
            value, ty = self.to_memory(lane, 0)
            code.do(f"store {ty} {value}, ptr {self.address(p)[0]}, align {size}")
            return
        value, ty = self.to_memory(v, width)
        if isinstance(p.off, Aff) and p.off.step == size:
            address = self.address(p._replace(off=p.off._replace(step=0)))[0]
            if always:
                if stream:
                    self._stream(p, f"store {ty} {value}, ptr {address}", size)
                else:
                    code.do(f"store {ty} {value}, ptr {address}, align {size}")
                return
            name, where, at = f"llvm.masked.store.v{width}{_mangle(MEM[v.elem])}.p0", "ptr", address
        else:
            self.cost(width)
            name = f"llvm.masked.scatter.v{width}{_mangle(MEM[v.elem])}.v{width}p0"
            where, at = f"<{width} x ptr>", self.vector(p)[0]
        f = code.intrinsic(name, "void", (ty, where, "i32", f"<{width} x i1>"))
        code.do(f"call void {f}({ty} {value}, {where} {at}, i32 {size}, <{width} x i1> {self.vector(mask)[0]})")

    def _stream(self, p: Ptr, store: str, size: int):
        """Such a store writes memory without reading its lines first. The address must be a multiple of its size."""
        code, line = self.code, min(LINE, self.width * size)
        self.streamed = True
        rest = tuple((iv, c) for iv, c in p.off.ivs if c % line)  # of what decides whether it is
        start, depth = self.address(p._replace(off=p.off._replace(step=0, ivs=rest)))
        low = code.pure(depth, f"and i64 {code.pure(depth, f'ptrtoint ptr {start} to i64')}, {line - 1}")
        with code.arm("stream") as streamed:
            code.do(f"{store}, align {line}, !nontemporal !{{i32 1}}")
        with code.arm("plain") as plain:
            code.do(f"{store}, align {size}")
        code.branch(code.pure(depth, f"icmp eq i64 {low}, 0"), streamed, plain)

    def cost(self, amount: int):
        """Counts accesses that are not plain vector moves; a loop nest is laid out to have the fewest."""
        self.spent += amount


def _mangle(ty: str) -> str:
    return {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}.get(ty, ty)
