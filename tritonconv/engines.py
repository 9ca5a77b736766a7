"""Engines: the ways to run a `@triton.jit` kernel. One table, in order of preference for a device.

A `Launch` says everything about a launch but the tensors. An engine binds it once, so that a call passes tensors only.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from . import interpreter
from .cpu import engine as native


@dataclass(frozen=True)
class Box:
    """How a kernel takes a tensor through a descriptor: as one of this shape, row-major, in boxes of `block`."""

    shape: tuple[int, ...]
    block: tuple[int, ...]

    def descriptor(self, tensor: Tensor) -> TensorDescriptor:
        if tensor.data_ptr() % 16:  # the accelerator's rule, which a view need not keep
            tensor = tensor.clone()
        strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        return TensorDescriptor(tensor, list(self.shape), strides, list(self.block))


@dataclass(frozen=True, eq=False)
class Launch:
    """kernel[grid](*tensors, *sizes, **constexprs): kernels take tensors first, then sizes, then constexprs.

    `boxes`: which of the tensors, by position, the kernel takes through descriptors.
    """

    kernel: JITFunction
    grid: tuple[int, int, int]
    sizes: tuple[int, ...]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    boxes: Mapping[int, Box] = field(default_factory=dict)

    def operands(self, tensors: Sequence[Tensor | None], others: Sequence | None = None) -> Sequence:
        """What the kernel is given: descriptors of the tensors that it takes so, else these or what `others` has."""
        given = tensors if others is None else others
        if not self.boxes:
            return given
        return [self.boxes[at].descriptor(tensors[at]) if at in self.boxes else one for at, one in enumerate(given)]

    @property
    def options(self) -> dict[str, Any]:
        """What Triton's own targets compile the kernel with."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


Typed = tuple[Launch, tuple[torch.dtype | None, ...]]  # a launch and the dtypes of its tensors


@dataclass(frozen=True, eq=False)
class Engine:
    """`bind(launch)` returns a function of the launch's tensors (or None, where the kernel allows it).

    `target(device)` names what the tile configs are chosen for, such as "sm_90", "gfx942" or "cpu". `compile(launches)`
    makes their kernels ready side by side; without it each is when it first runs.
    """

    name: str
    device_types: tuple[str, ...]
    bind: Callable[[Launch], Callable[..., None]]
    target: Callable[[torch.device], str]
    is_available: Callable[[], bool]
    compile: Callable[[list[Typed]], object] = lambda launches: None


def _bind_triton(launch: Launch) -> Callable[..., None]:
    """Triton's JIT inspects every argument of every call to find the kernel it has compiled. What it found is kept, and
    started directly for tensors that are alike in all that it compiles kernels by. It is given addresses: of a tensor
    Triton would ask for it again, and the driver whether it is one."""
    prepared: dict[tuple, Callable[..., None]] = {}
    names = launch.kernel.arg_names[-len(launch.constexprs) :]
    scalars = (*launch.sizes, *(launch.constexprs[name] for name in names))

    def start(device: torch.device, tensors: tuple[Tensor | None, ...]) -> None:
        addresses = [None if t is None else t.data_ptr() for t in tensors]
        alike = (device, *_compiled_by(tensors, addresses))
        if (known := prepared.get(alike)) is not None:
            known(*launch.operands(tensors, addresses), *scalars)
            return
        operands = launch.operands(tensors)
        kernel = launch.kernel[launch.grid](*operands, *launch.sizes, **launch.constexprs, **launch.options)
        if isinstance(kernel, CompiledKernel):  # and not, as within Triton's AsyncCompileMode, a promise of one
            prepared[alike] = kernel[launch.grid]

    def run(*tensors):
        device = tensors[0].device
        if device.index is None or device.index == torch.cuda.current_device():  # on which Triton launches
            start(device, tensors)
        else:
            with torch.cuda.device(device):
                start(device, tensors)

    return run


def _compiled_by(tensors: Sequence[Tensor | None], addresses: Sequence[int | None]) -> tuple:
    """Types, alignment, and on AMD whether 32-bit offsets reach all of the memory."""
    types = [None if t is None else t.dtype for t in tensors]
    alike = *types, *[a is not None and a % 16 for a in addresses]
    if not torch.version.hip:
        return alike
    return *alike, *[t is not None and t.untyped_storage().nbytes() < 2**31 for t in tensors]


def _triton_target(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def _bind_interpreter(launch: Launch) -> Callable[..., None]:
    def run(*tensors):
        interpreter.run(launch.kernel, launch.grid, *launch.operands(tensors), *launch.sizes, **launch.constexprs)

    return run


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("triton", ("cuda",), _bind_triton, _triton_target, torch.cuda.is_available),
        Engine("native", ("cpu",), native.bind, lambda device: "cpu", lambda: True, native.load_launches),
        Engine("interpreter", ("cpu", "cuda"), _bind_interpreter, lambda device: "interpreter", lambda: True),
    )
}
_pinned: Engine | None = None


def available() -> tuple[str, ...]:
    """Names of the engines that can run here, the preferred ones first."""
    return tuple(name for name, engine in ENGINES.items() if engine.is_available())


@functools.cache  # by device: to ask one for its type takes longer than to look it up
def _preferred(device: torch.device) -> Engine | None:
    return next((e for e in ENGINES.values() if device.type in e.device_types and e.is_available()), None)


def engine_for(device: torch.device) -> Engine | None:
    """The engine that runs kernels on tensors of `device`: the pinned one, else the first of the table, else None."""
    if _pinned is None:
        return _preferred(device)
    return _pinned if device.type in _pinned.device_types else None


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Within this context every kernel runs on the named engine, in all threads (autograd has threads of its own).

    Tensors on devices that the engine does not know are left to torch.
    """
    if name not in available():
        raise ValueError(f"engine must be one of {', '.join(available())}; got {name!r}")
    with _pin(ENGINES[name]):
        yield


@contextlib.contextmanager
def listing(device: torch.device, target: str | None = None) -> Iterator[list[Typed]]:
    """Within this context no kernel runs on tensors of `device`: what would be launched is listed, with the dtypes of
    its tensors, for an engine's `compile`. With a `target` it is what would be launched there."""
    typed: list[Typed] = []

    def bind(launch: Launch) -> Callable[..., None]:
        return lambda *tensors: typed.append((launch, tuple([None if t is None else t.dtype for t in tensors])))

    engine = engine_for(device)
    named = engine.target if target is None else lambda device: target
    with _pin(replace(engine, name="listing", bind=bind, target=named)):
        yield typed


def is_listing() -> bool:
    """Whether results hold nothing, because no kernel runs."""
    return _pinned is not None and _pinned.name == "listing"


@contextlib.contextmanager
def _pin(engine: Engine) -> Iterator[None]:
    global _pinned
    previous, _pinned = _pinned, engine
    try:
        yield
    finally:
        _pinned = previous
