"""Triton's view of the CPU target: the stages from TTIR to an object file. Loaded by Triton through its entry points.

Triton wants exactly one concrete backend class in this module.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from types import ModuleType

from triton.backends import compiler as triton_compiler
from triton.backends.compiler import GPUTarget

NAME = "tritonconv_cpu"


def cpu_target() -> GPUTarget:
    from . import target

    return GPUTarget(NAME, target.host().cpu, 1)


@dataclass(frozen=True)
class CPUOptions:
    """What Triton and its kernels ask a target's options for. Warps, stages and CTAs mean nothing here: one thread runs
    a program."""

    num_warps: int = 1
    num_ctas: int = 1
    num_stages: int = 1
    warp_size: int = 1
    maxnreg: int | None = None
    ir_override: str | None = None
    extern_libs: tuple = ()
    debug: bool = False
    sanitize_overflow: bool = False
    arch: str = ""
    backend_name: str = NAME
    supported_fp8_dtypes: tuple[str, ...] = ()
    deprecated_fp8_dtypes: tuple[str, ...] = ()
    deprecated_fp8_dot_operand_dtypes: tuple[str, ...] = ()
    default_dot_input_precision: str = "ieee"
    allowed_dot_input_precisions: tuple[str, ...] = ("ieee", "tf32", "tf32x3", "bf16x3", "bf16x6")
    max_num_imprecise_acc_default: int = 0
    enable_fp_fusion: bool = True
    launch_cooperative_grid: bool = False
    instrumentation_mode: str = ""
    fpsan_homomorphic_casts: bool = False
    disjoint: bool = False  # no argument that is written shares memory with another one

    def hash(self) -> str:
        return hashlib.sha256(repr(sorted(self.__dict__.items())).encode()).hexdigest()


class CPUBackend(triton_compiler.BaseBackend):
    binary_ext = "obj"
    supports_native_tensor_specialization = True

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == NAME

    def hash(self) -> str:
        from . import build

        return build.fingerprint()

    def parse_options(self, options: dict) -> CPUOptions:
        known = {k: v for k, v in options.items() if k in CPUOptions.__dataclass_fields__ and v is not None}
        return CPUOptions(**{**known, "arch": self.target.arch})

    def pack_metadata(self, metadata):
        return metadata

    def get_codegen_implementation(self, options) -> dict:
        return {"min_dot_size": lambda lhs, rhs: (1, 1, 1)}

    def get_module_map(self) -> dict[str, ModuleType]:
        from triton.language.extra.cuda import libdevice

        return {"triton.language.extra.libdevice": libdevice}  # mapped to C functions and vector code by name

    def load_dialects(self, context):
        pass

    def add_stages(self, stages: dict, options: CPUOptions, language=None):
        from . import build, target

        machine = target.host()

        def llir(module, metadata: dict) -> str:
            nonlocal lowered
            lowered = build.lower_module(module, machine, options)
            metadata.update(name=lowered.name, shared=0)
            return lowered.llvm

        lowered = None
        stages["ttir"] = lambda module, metadata: build.simplify(module)
        stages["llir"] = llir
        stages["obj"] = lambda text, metadata: build.assemble(replace(lowered, llvm=text), machine).pack()
