"""From a `@triton.jit` kernel to machine code: Triton's front end and passes, the lowering, LLVM."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import triton
from triton._C.libtriton import ir as mlir
from triton._C.libtriton import passes

from . import jit
from .checks import Check
from .lower import Lowered, Lowering
from .parse import parse_module
from .target import Target, host


@cache
def sources(folder: Path) -> str:
    """The digest of a folder's Python files, as they were when it was first asked for."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def fingerprint() -> str:
    """Changes with everything, besides the kernel, that changes the code made from it."""
    versions = (triton.__version__, llvmlite.__version__, llvm.llvm_version_info)
    return hashlib.sha256(repr((sources(Path(__file__).parent), versions, host())).encode()).hexdigest()


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


def lower_module(module, target: Target, options) -> Lowered:
    """An unknown module attribute makes MLIR print the generic form, which has one grammar for all operations."""
    module.set_attr("generic", mlir.builder(module.context).get_bool_attr(True))
    kernels = [f for f in parse_module(str(module)) if "public" in f.attrs.get("sym_visibility", "public")]
    return Lowering(kernels[0], target, options.enable_fp_fusion, options.debug, options.disjoint).run()


class Damaged(ValueError):
    """Bytes that are not a whole packed Binary."""


_MAGIC = b"tritonconv kernel 2\n"


@dataclass(frozen=True)
class Binary:
    """Machine code of one kernel and what a launch must know of it."""

    name: str
    image: bytes  # an object file
    scratch: int  # bytes per thread
    arguments: tuple[str, ...]  # element types of the runtime arguments, "ptr" for pointers
    checks: tuple[Check, ...] = ()  # in debug mode

    def pack(self) -> bytes:
        """Magic, SHA-256 of the rest, a line of JSON, the object file."""
        fields = asdict(self)
        image = fields.pop("image")
        rest = json.dumps(fields).encode() + b"\n" + image
        return _MAGIC + hashlib.sha256(rest).digest() + rest

    @staticmethod
    def unpack(data: bytes) -> Binary:
        start = len(_MAGIC) + 32
        if data[: len(_MAGIC)] != _MAGIC:
            raise Damaged("it does not begin like a kernel")
        if hashlib.sha256(data[start:]).digest() != data[len(_MAGIC) : start]:
            raise Damaged("its checksum does not match")
        head, image = data[start:].split(b"\n", 1)
        fields = json.loads(head)
        arguments, checks = tuple(fields.pop("arguments")), tuple(Check(**check) for check in fields.pop("checks"))
        return Binary(image=image, arguments=arguments, checks=checks, **fields)


def assemble(lowered: Lowered, target: Target) -> Binary:
    image = jit.emit_object(lowered.llvm, target)
    return Binary(lowered.name, image, lowered.scratch, lowered.arguments, lowered.checks)


def front_end(source, backend, options):
    """The TTIR module of an `ASTSource`, after Triton's passes."""
    context = mlir.context()
    mlir.load_dialects(context)
    arguments = backend.get_codegen_implementation(options), backend.get_module_map(), context
    return simplify(source.make_ir(backend.target, options, *arguments))


def compile_source(source, backend, options) -> Binary:
    """All stages at once."""
    with jit.lock:  # MLIR, too, must not be forked at work
        return assemble(lower_module(front_end(source, backend, options), host(), options), host())
