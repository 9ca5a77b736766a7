"""Machine code of a launch for a GPU that need not be present: compiled by Triton, disassembled, counted."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import MockTensor, create_function_from_signature

from ..engines import Launch
from .assembly import Assembly


@dataclass(frozen=True)
class Target:
    """A kind of GPU. Its multiprocessors (AMD: compute units) have four schedulers each.

    `shared_program`: bytes of shared memory that one program may have; `shared`: what those of a multiprocessor have
    together, `shared_reserved` of them lost to each. A scheduler holds `warps`, which share its 32-bit `registers`.
    """

    gpu: GPUTarget
    shared_program: int
    shared: int
    shared_reserved: int
    registers: int
    warps: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 << 10, 164 << 10, 1 << 10, 16 << 10, 16),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 << 10, 228 << 10, 1 << 10, 16 << 10, 16),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 << 10, 228 << 10, 1 << 10, 16 << 10, 16),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 << 10, 64 << 10, 0, 32 << 10, 8),
}
_TENSOR_MEMORY = 512  # columns, of an sm_100 multiprocessor


# By mnemonic: mma, wgmma, tcgen05.mma and mfma; accesses to a thread's local memory.
MATRIX = re.compile(r"[HID]MMA|HGMMA|UTC[A-Z]*MMA|v_mfma")
SPILL = re.compile(r"LDL|STL|scratch_")


@dataclass(frozen=True)
class MachineCode:
    """What one launch compiles to.

    `registers` are a thread's, `shared_bytes` a program's; `occupancy` is how many programs a multiprocessor holds.
    `code` counts the instructions by mnemonic, `loop` those of the main loop: it is empty where the compiler left none.
    `text` is the assembly that was counted.
    """

    registers: int
    shared_bytes: int
    occupancy: int
    code: Counter[str]
    loop: Counter[str]
    text: str


def matching(instructions: Counter[str], pattern: str | re.Pattern) -> int:
    """How many of `instructions` have a mnemonic that begins as `pattern` says."""
    return sum(count for mnemonic, count in instructions.items() if re.match(pattern, mnemonic))


def compile_launch(launch: Launch, dtypes: Sequence[torch.dtype | None], target: str) -> MachineCode:
    """The machine code of `launch` on tensors of `dtypes` (None where the kernel is given none), 16-byte aligned.

    Triton specializes the launch as it does on the GPU itself, and keeps what it compiled in its own cache. Raises what
    its compiler raises; KeyError for a `target` that is not in `TARGETS`.
    """
    machine = TARGETS[target]
    compiled = _compile(launch, dtypes, machine.gpu)
    if machine.gpu.backend == "cuda":
        registers, text = _disassemble(compiled.asm["cubin"])
    else:
        text = compiled.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1])
    occupancy = _occupancy(compiled.metadata, registers, machine)
    assembly = Assembly(text)
    loop = assembly.main_loop(MATRIX.match)
    return MachineCode(registers, compiled.metadata.shared, occupancy, assembly.count(), loop, text)


def files(launch: Launch, dtypes: Sequence[torch.dtype | None], target: str) -> tuple[str, dict[str, bytes]]:
    """What Triton calls the compiled launch in its cache, and the files that a machine needs there to run it."""
    gpu = TARGETS[target].gpu
    compiled = _compile(launch, dtypes, gpu)
    needed = ".json", f".{make_backend(gpu).binary_ext}"
    group = {name: Path(path) for name, path in compiled.metadata_group.items() if name.endswith(needed)}
    return compiled.hash, {name: path.read_bytes() for name, path in group.items()}


def _compile(launch: Launch, dtypes: Sequence[torch.dtype | None], gpu: GPUTarget) -> CompiledKernel:
    kernel, backend = launch.kernel, make_backend(gpu)
    tensors = launch.operands([None if dtype is None else MockTensor(dtype) for dtype in dtypes])
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments, specialization, options = bind(*tensors, *launch.sizes, **launch.constexprs, **launch.options)
    options, signature, constexprs, attributes = kernel._pack_args(backend, options, arguments, specialization, options)
    return triton.compile(ASTSource(kernel, signature, constexprs, attributes), gpu, vars(options))


def _disassemble(cubin: bytes) -> tuple[int, str]:
    """(registers, SASS)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([tool.path, *options, file.name], capture_output=True, check=True, text=True).stdout
            for tool, options in (
                (knobs.nvidia.cuobjdump, ["--dump-resource-usage"]),
                (knobs.nvidia.nvdisasm, ["--print-code", "--no-dataflow"]),
            )
        )
    return int(re.search(r"REG:(\d+)", usage)[1]), sass


def _occupancy(metadata, registers: int, target: Target) -> int:
    warps = min(target.warps, target.registers // (-(-registers // 8) * 8 * target.gpu.warp_size))
    limits = [4 * warps // metadata.num_warps]
    if metadata.shared:
        limits.append(target.shared // (metadata.shared + target.shared_reserved))
    if getattr(metadata, "tmem_size", None):
        limits.append(_TENSOR_MEMORY // metadata.tmem_size)
    return min(limits)
