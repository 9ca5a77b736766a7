"""What this machine can do at most, measured: float32 multiply-adds in registers, and bytes from caches and memory.

Each ceiling is the best of what Triton kernels and torch reach, so no kernel can pass it by honest means. The clock is
measured too: multiply-adds per cycle and core that are no power of two times a vector's width would betray a bad run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from triton.runtime.jit import JITFunction

from tritonconv import engines
from tritonconv.engines import Launch
from tritonconv.timing import turns

from . import programs
from .measure import DEVICE

MIB = 1 << 20
SIZES = (MIB, 8 * MIB, 512 * MIB)  # bytes at work: about the L2 caches, the L3 cache, memory
_CHAIN = 8  # of programs' unrolled loops
_PRODUCT = 3  # cycles until an integer product can be used, on the x86 processors of the last 15 years
_BLOCKS = (64, 128, 256, 1024)  # lanes: too few leave the units waiting, too many leave the registers


@dataclass(frozen=True)
class Ceilings:
    """flops: FLOP/s. bandwidth: byte/s by bytes at work, ascending. ghz: the clock of each thread, None on GPUs."""

    flops: float
    bandwidth: dict[int, float]
    ghz: float | None
    threads: int

    def bytes_per_second(self, size: int) -> float:
        """Of what works on `size` bytes: the best rate measured on as many or more."""
        return max([rate for at, rate in self.bandwidth.items() if at >= size], default=self.bandwidth[max(SIZES)])

    def least(self, flops: float, size: int) -> float:
        """The seconds that these FLOPs and bytes take at least."""
        return max(flops / self.flops, size / self.bytes_per_second(size))

    def __str__(self) -> str:
        rates = ", ".join(f"{rate / 1e9:.0f} GB/s on {size // MIB} MiB" for size, rate in self.bandwidth.items())
        text = f"{self.flops / 1e9:.0f} GFLOP/s, {rates}"
        if self.ghz:
            per_cycle = self.flops / self.ghz / 1e9 / self.threads
            text += f"; {self.ghz:.2f} GHz, so {per_cycle:.1f} FLOPs per cycle and thread"
        return text

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def of_json(stored: dict) -> Ceilings:
    return Ceilings(**stored | {"bandwidth": {int(size): rate for size, rate in stored["bandwidth"].items()}})


def _bound(kernel: JITFunction, programs_: int, *sizes: int, **constexprs: int) -> Callable[..., None]:
    return engines.engine_for(DEVICE).bind(Launch(kernel, (programs_, 1, 1), sizes, constexprs, 4, 1))


def _programs() -> int:
    """Enough to fill the device."""
    if DEVICE.type == "cuda":
        return 16 * torch.cuda.get_device_properties(DEVICE).multi_processor_count
    return torch.get_num_threads()


def _best(functions: list[Callable[[], object]]) -> list[float]:
    return list(map(min, turns(functions, seconds=0.2, least=0.002, device=DEVICE)))


def _flops() -> float:
    count, steps = _programs(), 20_000
    runs, work = [], []
    for BLOCK in _BLOCKS:
        y, run = torch.empty(count * BLOCK, device=DEVICE), _bound(programs.fma_chains, count, steps, BLOCK=BLOCK)
        runs.append(lambda run=run, y=y: run(y))
        work.append(2 * _CHAIN * steps * count * BLOCK)
    a = torch.ones(2048, 2048, device=DEVICE)
    out = torch.empty_like(a)
    runs.append(lambda: torch.mm(a, a, out=out))
    work.append(2 * 2048**3)
    return max(flops / seconds for flops, seconds in zip(work, _best(runs), strict=True))


def _movers(size: int) -> Iterator[tuple[int, Callable[[], object]]]:
    """Bytes that each function moves, and the function: reading `size` bytes, or copying half of them."""
    BLOCK, count = 256, 8 * _programs()
    x = torch.ones(size // 4, device=DEVICE)
    steps = x.numel() // (BLOCK * count)
    sums, read = torch.empty(count * BLOCK, device=DEVICE), _bound(programs.read, count, steps, BLOCK=BLOCK)
    yield 4 * BLOCK * count * steps, lambda: read(x, sums)
    yield size, x.sum
    source, target = x.chunk(2)
    copy = _bound(programs.copy, source.numel() // 4096, BLOCK=4096)
    yield size, lambda: copy(source, target)
    yield size, lambda: target.copy_(source)


def _bandwidth(size: int) -> float:
    moved, runs = zip(*_movers(size), strict=True)
    return max(bytes_ / seconds for bytes_, seconds in zip(moved, _best(list(runs)), strict=True))


def _ghz() -> float | None:
    if DEVICE.type != "cpu":
        return None
    count, steps = torch.get_num_threads(), 50_000
    y, run = torch.empty(count, dtype=torch.int32), _bound(programs.products, count, steps)
    (seconds,) = _best([lambda: run(y)])
    return _PRODUCT * _CHAIN * steps / seconds / 1e9


def measure() -> Ceilings:
    """Takes about two seconds."""
    return Ceilings(_flops(), {size: _bandwidth(size) for size in SIZES}, _ghz(), torch.get_num_threads())
