"""From a `@triton.jit` kernel to machine code: Triton's front end and passes, the lowering, LLVM."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import triton
from triton._C.libtriton import ir as mlir
from triton._C.libtriton import passes

from . import jit
from .ir import Type, parse_module
from .lower import Lowered, lower
from .target import Target, host


@cache
def fingerprint() -> str:
    """Changes with everything, besides the kernel, that changes the code made from it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    target = host()
    versions = (triton.__version__, llvmlite.__version__, llvm.llvm_version_info)
    digest.update(repr((versions, target)).encode())
    return digest.hexdigest()


def simplify(module):
    """Triton's own target-independent passes, in place."""
    manager = mlir.pass_manager(module.context)
    passes.common.add_inliner(manager)
    passes.ttir.add_rewrite_tensor_descriptor_to_pointer(manager)
    passes.common.add_canonicalizer(manager)
    passes.ttir.add_combine(manager)
    passes.ttir.add_reorder_broadcast(manager)
    passes.common.add_cse(manager)
    passes.common.add_symbol_dce(manager)
    manager.run(module, "simplify")
    return module


def lower_module(module, target: Target, fuse: bool) -> Lowered:
    """An unknown module attribute makes MLIR print the generic form, which has one grammar for all operations."""
    module.set_attr("generic", mlir.builder(module.context).get_bool_attr(True))
    kernels = [f for f in parse_module(str(module)) if "public" in f.attrs.get("sym_visibility", "public")]
    return lower(kernels[0], target, fuse)


@dataclass(frozen=True)
class Binary:
    """Machine code of one kernel and what a launch must know of it."""

    name: str
    image: bytes  # an object file
    scratch: int  # bytes per thread
    arguments: tuple[str, ...]  # LLVM-like element types of the runtime arguments, "ptr" for pointers

    @staticmethod
    def of(lowered: Lowered, target: Target) -> Binary:
        return Binary(lowered.name, jit.emit_object(lowered.llvm, target), lowered.scratch, slots(lowered.arguments))


def slots(types: tuple[Type, ...]) -> tuple[str, ...]:
    return tuple(t.elem for t in types)
