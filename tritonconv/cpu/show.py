"""Prints what becomes of a kernel: `python -m tritonconv.cpu.show module:kernel NAME=TYPE|VALUE …`.

    python -m tritonconv.cpu.show examples.add:add x_ptr=*fp32 y_ptr=*fp32 z_ptr=*fp32 size=i32 BLOCK=1024

A parameter is given its type ("*fp32", "i32", …) or, for a constexpr, its value. `--stage ttir|llvm|asm` prints one
stage.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re

from triton.compiler import ASTSource

from . import build, jit
from .compiler import CPUBackend, cpu_target
from .target import host

_TYPE = re.compile(r"\*?(fp|bf|i|u)\d+")


def stages(
    kernel, signature: dict[str, str], constexprs: dict[str, object], disjoint: bool = False
) -> dict[str, str]:
    """The kernel (a JITFunction) as TTIR after Triton's passes, LLVM IR before LLVM's, and assembly of this machine.

    disjoint: whether its arguments share no memory, as in the library's own launches.
    """
    backend = CPUBackend(cpu_target())
    options = backend.parse_options({"disjoint": disjoint})
    source = ASTSource(kernel, signature | dict.fromkeys(constexprs, "constexpr"), constexprs, {})
    module = build.front_end(source, backend, options)
    ttir = module.str_nodebug()
    llvm = build.lower_module(module, host(), options).llvm
    return {"ttir": ttir, "llvm": llvm, "asm": jit.emit_assembly(llvm, host())}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tritonconv.cpu.show", description=__doc__.splitlines()[0])
    parser.add_argument("kernel", help="module:name of a @triton.jit function")
    parser.add_argument("parameters", nargs="*", metavar="NAME=TYPE|VALUE")
    parser.add_argument("--stage", choices=("ttir", "llvm", "asm"), help="print one stage only")
    arguments = parser.parse_args()
    module, _, name = arguments.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    given = dict(p.split("=", 1) for p in arguments.parameters)
    missing = [n for n in kernel.arg_names if n not in given]
    if missing:
        parser.error(f"{name} also takes {', '.join(missing)}: give each a type, or a constexpr its value")
    signature = {n: t for n, t in given.items() if _TYPE.fullmatch(t)}
    constexprs = {n: ast.literal_eval(t) for n, t in given.items() if n not in signature}
    for stage, text in stages(kernel, signature, constexprs).items():
        if arguments.stage in (None, stage):
            print(f"==== {stage} ====\n{text}")


if __name__ == "__main__":
    main()
