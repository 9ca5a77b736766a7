"""`tune(model, sample)`: what a model looks up, measured where the store lacks it."""

from __future__ import annotations

import contextlib
import copy
import platform
from collections.abc import Mapping, Sequence

import torch
import triton
from rich.console import Console
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import autotune
from autotune import Tuning

from . import choice, engines, launch, measuring, replay, tuned
from .blocks import repeat
from .patching import swap
from .patching.checks import require_module
from .sample import arguments, copied, inputs_of

Sample = Tensor | tuple | Mapping


def tune(model: nn.Module, sample: Sample, *, budget: float | None = None, console: Console | None = None) -> Tuning:
    """Measures, for every operator that `model` runs on `sample`, which configuration is fastest here, and for every
    patched call whether torch is; stores it, for this model and all others; and returns what was found.

    What is stored already is not measured again, so an interrupted run continues where it was. `model` stays as it is.
    A model in training mode is tuned for forward and backward, one in evaluation mode for inference.

    sample: the input, or a tuple or dict of inputs, of the sizes, dtypes and memory formats to tune for.
    budget: seconds; what is not reached in time keeps its predicted configuration.
    Under torch.distributed the work is shared among the ranks, which must all call this.

    Raises `ValueError` if `model` is not patched or `budget` not positive, `OSError` if the store cannot be written.
    """
    require_module(model, "tune")
    deadline = autotune.deadline_of(budget)
    if not any(swap.plan_of(module) is not None for module in model.modules()):
        raise ValueError(f"tune: this {type(model).__name__} runs no kernels: call tritonconv.patch on it first")
    try:
        return tune_keys(problems(model, sample), device_of(sample), deadline=deadline, console=console)
    finally:
        forget()


def tune_keys(keys: Sequence[Mapping], device: torch.device, **options) -> Tuning:
    """`autotune.tune` for keys that `problems` gave, on `device`."""
    calls = [key for key in keys if measuring.is_call(key)]
    algorithms = [key for key in keys if key["op"] in measuring.ALGORITHMS]
    tiles = [key for key in keys if key["op"] in measuring.OPERATORS]
    tiles += [key for algorithm in algorithms for key in measuring.tiles_of(algorithm) if key not in tiles]
    stages = tiles, algorithms, calls
    return autotune.tune(stages, lambda key: measuring.problem_of(key, device), provenance(device), **options)


def forget() -> None:
    """Makes what was tuned hold for the next call."""
    launch.common.forget()
    choice.forget()
    repeat.forget()
    replay.forget()


def problems(model: nn.Module, sample: Sample) -> list[dict]:
    """The keys that a run of `model` looks up: forward, and backward in training mode. A copy of it runs."""
    device = device_of(sample)
    try:
        with engines.listing(device):
            return _asked(hollow(model), sample)
    except Exception:  # whatever a forward that depends on values makes of those that nobody computed
        return _asked(copy.deepcopy(model), sample)


def device_of(sample: Sample) -> torch.device:
    return inputs_of(sample)[0].device


def _asked(model: nn.Module, sample: Sample) -> list[dict]:
    with autotune.asked() as keys:
        run(model, sample)
    return keys


def hollow(model: nn.Module) -> nn.Module:
    """A copy whose parameters hold no values in particular: they take neither time nor memory."""
    plain = (p for p in model.parameters() if type(p) is nn.Parameter)
    return copy.deepcopy(model, {id(p): nn.Parameter(torch.empty_like(p), p.requires_grad) for p in plain})


def run(model: nn.Module, sample: Sample) -> None:
    """Forward and, in training mode, backward."""
    forget()
    args, kwargs = arguments(copied(sample))
    with torch.random.fork_rng(), torch.set_grad_enabled(model.training):
        outputs = tree_leaves(model(*args, **kwargs))
        wanted = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
        if wanted:
            torch.autograd.backward(wanted, [torch.ones_like(y) for y in wanted])


def provenance(device: torch.device) -> dict[str, object]:
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    if device.type == "cuda":
        return {"device": name_of(device), **versions}
    return {"device": name_of(device), **tuned.machine(), **versions}


def name_of(device: torch.device) -> str:
    """What its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
