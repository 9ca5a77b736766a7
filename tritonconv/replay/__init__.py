"""Calls of whole models: one like earlier ones repeats what they launched, and nothing of what led to it.

A block's own checks and its launch take 30 to 40 µs when caches are cold, more than many a kernel. None of that depends
on values. So the third call in inference with inputs of some sizes is recorded (`tape`): the forwards of all children
that could be traced become one flat graph, in it torch's calls as they are and, in place of each block, its launches.
Some pairs of launches become one (`fusing`), and concatenations none (`joining`). Then the graph becomes a `program`:
launches that follow each other are one native call on prepared arguments, and what they hand to each other lies in
memory that the program keeps. What a caller gets is always new memory.

Before it runs again a `guard` looks whether everything that led to the recorded launches is as it was. That, one
compiled expression, is most of what is left. A call that is unlike, or is watched by anybody (hooks, modes, tracers),
takes the usual way. Calls of small models with gradients are recorded with these, as `steps` says.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from .. import engines
from ..ops.support import unsupported_now
from .guard import Guard, guard_of, hooked
from .program import Program
from .steps import Step, StepTape, is_watched
from .tape import Forward, Tape

NOT_REPLAYED = object()
_CPU = torch.device("cpu")
_MOST = 4  # programs that a module keeps
_FIRST, _LAST = 2, 1 << 12  # calls that are alike before one is recorded: at first, and where nothing comes of it
_WORTH = 64  # calls that a recording has to serve, which takes as long as some ten calls
_generation = 0
_recording = threading.Lock()  # by one thread at a time: torch notes globally that operators are listened to


def forget() -> None:
    """Makes the next calls ask again which kernel, in which configuration, to run."""
    global _generation
    _generation += 1


def _after_fork() -> None:
    """A child has no OpenMP threads, with which launches reckon, nor the thread that may have been recording."""
    global _recording
    _recording = threading.Lock()
    forget()


os.register_at_fork(after_in_child=_after_fork)


class Replays:
    """The programs of one module. `forwards`: its traced forwards, under "", and by path those of the modules in it."""

    def __init__(self, forwards: Mapping[str, tuple[Forward, ...]]):
        self.forwards = forwards
        self._programs: dict[tuple, tuple[Guard, Program]] = {}
        self._waiting: dict[tuple, int] = {}
        self._patience = dict.fromkeys((False, True), _FIRST)  # by whether there are gradients

    def __deepcopy__(self, memo) -> Replays:
        return Replays(self.forwards)

    def __call__(self, root: nn.Module, inputs: tuple) -> object:
        """What `root` gives for the inputs, or NOT_REPLAYED, if nothing has run."""
        if not _unwatched(inputs):
            return NOT_REPLAYED
        key = torch.is_grad_enabled(), _generation, torch.get_num_threads()
        for x in inputs:
            key += x.shape, x.stride(), x.dtype
        found = self._programs.get(key)
        if found is None:
            return self._record(root, inputs, key)
        holds, program = found
        if not holds(root):
            self._drop(key, program)
            return NOT_REPLAYED
        if program.calls == _WORTH:
            self._patience[key[0]] = _FIRST
        return program(root, inputs)

    def _record(self, root: nn.Module, inputs: tuple, key: tuple) -> object:
        seen = self._waiting.get(key, 0)
        if seen < self._patience[key[0]]:
            if len(self._waiting) > 16 * _MOST:
                self._waiting.clear()
            self._waiting[key] = seen + 1
            return NOT_REPLAYED
        forward = next((f for f in self.forwards[""] if f.holds(root, inputs)), None)
        if forward is None or hooked(root):
            self._disappointed(key)
            return NOT_REPLAYED
        if not _recording.acquire(blocking=False):
            return NOT_REPLAYED
        try:
            gradients = key[0]
            tape = (StepTape if gradients else Tape)(root, self.forwards)
            result = tape.record(forward, inputs)
            guard = None if tape.refusal else guard_of(root, tape)
            if guard is None:
                self._disappointed(key)
            else:
                self._keep(key, guard, Step(tape, guard) if gradients else Program(tape))
            return result
        finally:
            _recording.release()

    def _keep(self, key: tuple, guard: Guard, program: Program) -> None:
        for old, (_, others) in list(self._programs.items())[: 1 - _MOST]:
            self._drop(old, others)
        self._programs[key] = guard, program

    def _drop(self, key: tuple, program: Program) -> None:
        self._programs.pop(key, None)
        self._waiting.pop(key, None)
        if program.calls < _WORTH:
            self._disappointed(key)

    def _disappointed(self, key: tuple) -> None:
        self._patience[key[0]] = min(2 * self._patience[key[0]], _LAST)


def _unwatched(inputs: tuple) -> bool:
    """Whether a call now, with these inputs, is a plain one on the CPU's own engine."""
    if torch.compiler.is_compiling() or not inputs:
        return False
    for x in inputs:
        if (type(x) is not Tensor and type(x) is not Parameter) or not x.is_cpu or x.layout is not torch.strided:
            return False
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    if modes or torch._C._is_any_autocast_enabled() or unsupported_now() is not None:
        return False
    if torch.is_grad_enabled() and is_watched(inputs):
        return False
    return engines.engine_for(_CPU) is engines.ENGINES["native"]
