"""`tune(model, sample)`: what `autotune` must know of convolution.

There are two kinds of keys. An *operator's* (fprop, dgrad, …) is asked for its tile config, and all candidates run on
small integers, whose sums are exact, so a wrong one shows. A *call's* (`choice`) is asked whether torch is faster, with
everything around the kernels counted: fusion, changes of memory format, autograd. Operators go first.
"""

from __future__ import annotations

import contextlib
import copy
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields

import torch
import torch.nn.functional as F
import triton
from rich.console import Console
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import autotune
from autotune import Problem, Tuning

from . import choice, configs, engines, launch, repeat, swap
from .configs import TileConfig
from .geometry import ConvGeometry, PoolGeometry

Sample = Tensor | Sequence | Mapping
Run = Callable[[Mapping], Callable[[], object]]


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
    deadline = autotune.deadline_of(budget)
    if not any(swap.plan_of(module) is not None for module in model.modules()):
        raise ValueError(f"tune: this {type(model).__name__} runs no kernels: call tritonconv.patch on it first")
    device = next(leaf.device for leaf in tree_leaves(sample) if isinstance(leaf, Tensor))
    try:
        return tune_keys(problems(model, sample), device, deadline=deadline, console=console)
    finally:
        forget()


def tune_keys(keys: Sequence[Mapping], device: torch.device, **options) -> Tuning:
    """`autotune.tune` for keys that `problems` gave, on `device`."""
    operators = [key for key in keys if key["op"] in _OPERATORS]
    calls = [key for key in keys if _is_call(key)]
    return autotune.tune((operators, calls), lambda key: problem_of(key, device), provenance(device), **options)


def _is_call(key: Mapping) -> bool:
    return "arguments" in key


def forget() -> None:
    """Makes what was tuned hold for the next call."""
    launch.common.forget()
    choice.forget()
    repeat.forget()


def problems(model: nn.Module, sample: Sample) -> list[dict]:
    """The keys that a run of `model` looks up: forward, and backward in training mode. A copy of it runs."""
    forget()
    twin = copy.deepcopy(model)
    args, kwargs = ((), sample) if isinstance(sample, Mapping) else (sample, {})
    args = (args,) if isinstance(args, Tensor) else args
    with autotune.asked() as keys, torch.random.fork_rng(), torch.set_grad_enabled(model.training):
        outputs = tree_leaves(twin(*args, **kwargs))
        wanted = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
        if wanted:
            torch.autograd.backward(wanted, [torch.ones_like(y) for y in wanted])
    return keys


def provenance(device: torch.device) -> dict[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    return {"device": name, "threads": torch.get_num_threads(), **versions}


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def problem_of(key: Mapping, device: torch.device) -> Problem:
    """Raises `ValueError` for a key of another target than the one that runs on `device`."""
    engine = engines.engine_for(device)
    if engine is None or engine.target(device) != key["target"]:
        raise ValueError(f"cannot measure for {key['target']!r} on {device}")
    return (_call_problem if _is_call(key) else _operator_problem)(key, device)


def _operator_problem(key: Mapping, device: torch.device) -> Problem:
    op, dtype, target = key["op"], getattr(torch, key["dtype"]), key["target"]
    kind, make = _OPERATORS[op]
    geometry = kind(**{field.name: _tuples(key[field.name]) for field in fields(kind)})
    space = configs.space(op, geometry, dtype, target)
    run, exact = make(op, geometry, dtype, device)

    def prepare(candidates: Sequence[Mapping]) -> None:
        with engines.listing(device) as launches:
            for candidate in candidates:
                run(candidate)()
        # What cannot be compiled fails again, by itself, when it is its turn to run.
        with contextlib.suppress(Exception):
            engines.engine_for(device).compile(launches)

    return Problem(
        key=key,
        candidates=[asdict(config) for config in space],
        costs=[configs.cost(config, op, geometry, dtype, target) for config in space],
        run=run,
        check=lambda result: _difference(result, exact, dtype),
        prepare=prepare,
        clock=_clock(device),
    )


def _convolution(op: str, g: ConvGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, tuple[Tensor, ...]]:
    x = _integers(device, g.N, g.C, g.H, g.W)
    weight = _integers(device, g.K, g.Cg, g.R, g.S)
    dy = _integers(device, g.N, g.K, g.P, g.Q)
    (top, bottom), (left, right) = g.padding
    with torch.enable_grad():
        wanted = {"fprop": None, "dgrad": x, "wgrad": weight}[op]
        if wanted is not None:
            wanted.requires_grad_()
        y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, g.stride, 0, g.dilation, g.groups)
        exact = y if wanted is None else torch.autograd.grad(y, wanted, dy)[0]
    x, weight, dy = (t.detach().to(dtype, memory_format=torch.channels_last) for t in (x, weight, dy))
    made = launch.conv
    run = {
        "fprop": lambda config: lambda: made.fprop(x, weight, None, g, config=config),
        "dgrad": lambda config: lambda: made.dgrad(dy, weight, None, g, config=config),
        "wgrad": lambda config: lambda: made.wgrad(dy, x, g, torch.channels_last, config),
    }[op]
    return lambda config: run(TileConfig(**config)), (exact,)


def _max_pool(op: str, g: PoolGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, tuple[Tensor, ...]]:
    x = _integers(device, g.N, g.C, g.H, g.W).requires_grad_()
    dy = _integers(device, g.N, g.C, g.P, g.Q)
    with torch.enable_grad():
        y, indices = F.max_pool2d(x, (g.R, g.S), g.stride, g.padding, g.dilation, g.ceil_mode, return_indices=True)
        dx = torch.autograd.grad(y, x, dy)[0]
    x, dy = (t.detach().to(dtype, memory_format=torch.channels_last) for t in (x, dy))
    small = indices.to(torch.int32, memory_format=torch.channels_last)
    made = launch.pool
    if op == "max_pool":
        return lambda c: lambda: made.max_pool(x, g, torch.int32, TileConfig(**c)), (y, indices)
    return lambda c: lambda: made.max_pool_backward(dy, small, g, TileConfig(**c)), (dx,)


# What an operator's geometry is, and the function of (op, geometry, dtype, device) that makes its runs and the truth.
_OPERATORS = {
    "fprop": (ConvGeometry, _convolution),
    "dgrad": (ConvGeometry, _convolution),
    "wgrad": (ConvGeometry, _convolution),
    "max_pool": (PoolGeometry, _max_pool),
    "max_pool_backward": (PoolGeometry, _max_pool),
}


def _call_problem(key: Mapping, device: torch.device) -> Problem:
    launch.common.forget()  # what runs now is to have the configs found since
    op, given = key["op"], {name: _operand(value, device) for name, value in key["options"].items()}
    args = [_operand(value, device) for value in key["arguments"]]
    leaves = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    autocast = None if key["autocast"] is None else getattr(torch, key["autocast"])

    def call(function: Callable, args: Sequence, options: Mapping) -> object:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            return function(*args, **options)

    exact = tree_leaves(call(choice.torchs(op), *tree_map(_exactly, (args, given))))
    dtype = autocast or args[0].dtype
    dy = torch.ones_like(exact[0], dtype=dtype) if key["backward"] else None

    def run(candidate: Mapping) -> Callable[[], object]:
        function = (choice.torchs if candidate == choice.TORCH else choice.kernels)(op)

        def forward():
            with torch.no_grad():
                return call(function, args, given)

        def forward_and_backward():
            with torch.enable_grad():
                outputs = call(function, args, given)
                torch.autograd.grad(tree_leaves(outputs)[0], leaves, dy)
            return outputs

        return forward_and_backward if key["backward"] else forward

    return Problem(
        key=key,
        candidates=[choice.KERNELS, choice.TORCH],
        costs=[None, None],
        run=run,
        check=lambda result: _difference(result, exact, dtype, roundings=4),
        prepare=lambda candidates: None,
        clock=_clock(device),
    )


def _integers(device: torch.device, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randint(-2, 3, shape, generator=generator).to(device, torch.float64)


def _operand(value: object, device: torch.device) -> object:
    if not isinstance(value, Mapping):
        return _tuples(value)
    x = _integers(device, *value["shape"])
    x = x.abs() + 1 if x.dim() == 1 else x  # a bias or a statistic: variances are positive
    x = x.to(getattr(torch, value["dtype"]))
    x = x.to(memory_format=torch.channels_last) if value["channels_last"] else x
    return x.requires_grad_(value["requires_grad"])


def _exactly(value: object) -> object:
    return value.detach().double() if isinstance(value, Tensor) else value


def _tuples(value: object) -> object:
    """Lists of JSON as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _difference(result: object, exact: Sequence[Tensor], dtype: torch.dtype, roundings: int = 1) -> str | None:
    """What is wrong with a result. So many roundings to `dtype`, and sums in float32 in whatever way, stay well within
    the bound; torch rounds after the convolution, the norm, the addition and the activation."""
    eps = roundings * torch.finfo(dtype).eps
    eps += 256 * torch.finfo(torch.float32).eps if dtype is not torch.float64 else 0
    for got, want in zip(tree_leaves(result), exact, strict=True):
        error, largest = (got.double() - want).abs().max().item(), want.abs().max().item()
        if not error <= eps * largest:
            return f"its result is wrong by {error:.2g} where the largest element is {largest:.2g}"
    return None


def _clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None

    def clock(call: Callable[[], object]) -> float:
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        return time.perf_counter() - start

    return clock
