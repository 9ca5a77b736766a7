"""LLVM IR text → machine code in this process."""

from __future__ import annotations

import os

import llvmlite.binding as llvm

from .target import Target, host

# llvmlite lets one thread at a time into LLVM. A fork waits for it: the child would wait in vain for a thread it lacks.
lock = llvm.ffi.lib._lock
os.register_at_fork(before=lock.__enter__, after_in_parent=lock.__exit__, after_in_child=lock.__exit__)


def _machine(target: Target) -> llvm.TargetMachine:
    if target.triple == llvm.get_process_triple():
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small"
    )


def optimise(text: str, target: Target) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
    machine = _machine(target)
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = False
    options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, options)
    manager = llvm.create_new_module_pass_manager()
    manager.add_sroa_pass()
    manager.add_instruction_combine_pass()
    manager.add_simplify_cfg_pass()
    manager.add_new_gvn_pass()
    manager.run(module, passes)
    return module, machine


def emit_object(text: str, target: Target | None = None) -> bytes:
    module, machine = optimise(text, target or host())
    return machine.emit_object(module)


def emit_assembly(text: str, target: Target | None = None) -> str:
    module, machine = optimise(text, target or host())
    return machine.emit_assembly(module)


class Loader:
    """Loads object files into the process. One LLVM JIT serves them all; a kernel stays while it is referenced."""

    def __init__(self):
        self._jit = None
        self._count = 0

    def load(self, image: bytes, name: str) -> tuple[int, object]:
        """(address of `name`, handle to keep alive)."""
        with lock:
            if self._jit is None:
                llvm.initialize_native_target()
                llvm.initialize_native_asmprinter()
                # JITLink, because the older linker may map code and constants further apart than code can reach.
                self._jit = llvm.create_lljit_compiler(use_jit_link=True)
            self._count += 1
            library = llvm.JITLibraryBuilder().add_object_img(image).add_current_process().export_symbol(name)
            tracker = library.link(self._jit, f"kernel{self._count}")
        return tracker[name], tracker


loader = Loader()
