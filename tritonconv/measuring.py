"""How the candidates for a key are run, timed and checked: what `autotune` must know of convolution.

There are three kinds of keys. An *operator's* (fprop, dgrad, …) is asked for its tile config, an *algorithm's* for the
way to compute fprop, dgrad or wgrad; all candidates run on small integers, whose sums are exact, so a wrong one shows.
A *call's* (`choice`) is asked whether torch is faster, with everything around the kernels counted: fusion, changes of
memory format, autograd. They go in this order.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from autotune import Problem

from . import choice, configs, engines, launch
from .configs import Geometry, TileConfig
from .geometry import AdaptiveGeometry, ConvGeometry, PoolGeometry

Run = Callable[[Mapping], Callable[[], object]]
Exact = Callable[[], tuple[Tensor, ...]]


def is_call(key: Mapping) -> bool:
    return "arguments" in key


def problem_of(key: Mapping, device: torch.device) -> Problem:
    """Raises `ValueError` for a key of another target than the one that runs on `device`."""
    engine = engines.engine_for(device)
    if engine is None or engine.target(device) != key["target"]:
        raise ValueError(f"cannot measure for {key['target']!r} on {device}")
    if is_call(key):
        return _call_problem(key, device)
    return (_algorithm_problem if key["op"] in ALGORITHMS else _operator_problem)(key, device)


def geometry_of(key: Mapping) -> Geometry:
    """That of an operator's key."""
    kind = next(k for k in (ConvGeometry, PoolGeometry, AdaptiveGeometry) if {f.name for f in fields(k)} <= key.keys())
    return kind(**{field.name: _tuples(key[field.name]) for field in fields(kind)})


def _operator_problem(key: Mapping, device: torch.device) -> Problem:
    op, geometry, dtype = key["op"], geometry_of(key), getattr(torch, key["dtype"])
    problem = geometry, dtype, key["target"]
    space = configs.space(op, *problem)
    run, exact = OPERATORS[op](op, geometry, dtype, device)
    exact = functools.cache(exact)

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
        costs=[configs.cost(config, op, *problem) for config in space],
        run=run,
        check=lambda result: _difference(result, exact(), dtype),
        prepare=prepare,
        clock=_clock(device),
    )


def tiles_of(key: Mapping) -> list[dict]:
    """The keys that an algorithm's candidates ask for their tiles."""
    op, geometry = key["op"].removesuffix("_algorithm"), geometry_of(key)
    plain = {name: value for name, value in key.items() if name in ("dtype", "target")}
    asked = [plain | {"op": op} | asdict(geometry)]
    if op != "wgrad":  # by Winograd's algorithm it has one tile
        asked.append(plain | {"op": "winograd"} | asdict(configs.winograd.as_fprop(op, geometry)))
    return json.loads(json.dumps(asked))


def _algorithm_problem(key: Mapping, device: torch.device) -> Problem:
    launch.common.forget()  # what runs now is to have the tiles found since
    op, geometry, dtype = key["op"].removesuffix("_algorithm"), geometry_of(key), getattr(torch, key["dtype"])
    problem = geometry, dtype, key["target"]
    costs = configs.algorithms(op, *problem)
    fast = launch.winograd_wgrad if op == "wgrad" else launch.winograd
    (by_gemm, exact), (by_winograd, _) = (
        _convolution(op, geometry, dtype, device, made) for made in (launch.conv, fast)
    )
    tile = asdict(launch.common.config_of(op, *problem))
    runs = {"gemm": lambda: by_gemm(tile), "winograd": lambda: by_winograd(None)}
    exact = functools.cache(exact)
    ordered = sorted(costs, key=costs.get)
    return Problem(
        key=key,
        candidates=[{"algorithm": name} for name in ordered],
        costs=[costs[name] if math.isfinite(costs[name]) else None for name in ordered],
        run=lambda config: runs[config["algorithm"]](),
        check=lambda result: _difference(result, exact(), dtype),
        prepare=lambda candidates: None,
        clock=_clock(device),
    )


def _winograd(op: str, g: ConvGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    return _convolution("fprop", g, dtype, device, launch.winograd)


def _convolution(
    op: str, g: ConvGeometry, dtype: torch.dtype, device: torch.device, made=launch.conv
) -> tuple[Run, Exact]:
    kind = op.removeprefix("depthwise_")
    x = _integers(device, g.N, g.C, g.H, g.W)
    weight = _integers(device, g.K, g.Cg, g.R, g.S)
    dy = _integers(device, g.N, g.K, g.P, g.Q)
    (top, bottom), (left, right) = g.padding

    def exact() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
            padded = F.pad(inputs[0], (left, right, top, bottom))
            y = F.conv2d(padded, inputs[1], None, g.stride, 0, g.dilation, g.groups)
            wanted = {"dgrad": inputs[0], "wgrad": inputs[1]}.get(kind)
            return (y.detach() if wanted is None else torch.autograd.grad(y, wanted, dy)[0],)

    a, w, b = (t.to(dtype, memory_format=torch.channels_last) for t in (x, weight, dy))
    run = {
        "fprop": lambda config: lambda: made.bind_fprop(a, w, None, g, config=config)(a, None),
        "dgrad": lambda config: lambda: made.dgrad(b, w, None, g, config=config),
        "wgrad": lambda config: lambda: made.wgrad(b, a, g, torch.channels_last, config),
    }[kind]
    return lambda config: run(config and TileConfig(**config)), exact


def _pool(op: str, g: PoolGeometry | AdaptiveGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    x = _integers(device, g.N, g.C, g.H, g.W)
    dy = _integers(device, g.N, g.C, g.P, g.Q)
    a, b = (t.to(dtype, memory_format=torch.channels_last) for t in (x, dy))
    if isinstance(g, AdaptiveGeometry):
        largest = functools.partial(F.adaptive_max_pool2d, output_size=(g.P, g.Q), return_indices=True)
        mean = functools.partial(F.adaptive_avg_pool2d, output_size=(g.P, g.Q))
    else:
        window = {"kernel_size": (g.R, g.S), "stride": g.stride, "padding": g.padding, "ceil_mode": g.ceil_mode}
        largest = functools.partial(F.max_pool2d, **window, dilation=g.dilation, return_indices=True)
        mean = functools.partial(F.avg_pool2d, **window)
    by_max = op.startswith("max")

    def exact() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inputs = x.clone().requires_grad_()
            outputs = largest(inputs) if by_max else (mean(inputs),)
            return torch.autograd.grad(outputs[0], inputs, dy) if op.endswith("backward") else outputs

    made, divisor = launch.pool, g.divisor(count_include_pad=True)
    indices = largest(x)[1].to(torch.int32, memory_format=torch.channels_last) if by_max else None
    run = {
        "max_pool": lambda config: lambda: made.max_pool(a, g, torch.int32, config),
        "max_pool_backward": lambda config: lambda: made.max_pool_backward(b, indices, g, config),
        "avg_pool": lambda config: lambda: made.avg_pool(a, g, divisor, config=config),
        "global_avg_pool": lambda config: lambda: made.avg_pool(a, g, divisor, config=config),
        "avg_pool_backward": lambda config: lambda: made.avg_pool_backward(b, g, divisor, config),
    }[op]
    return lambda config: run(TileConfig(**config)), exact


ALGORITHMS = "fprop_algorithm", "dgrad_algorithm", "wgrad_algorithm"
# What makes the runs, and the truth, of an operator's (op, geometry, dtype, device).
OPERATORS = {
    **{f"{prefix}{op}": _convolution for prefix in ("", "depthwise_") for op in ("fprop", "dgrad", "wgrad")},
    "winograd": _winograd,
    **dict.fromkeys(("max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward", "global_avg_pool"), _pool),
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
