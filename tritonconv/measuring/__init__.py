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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

import torch

from autotune import Problem

from .. import configs, engines, launch
from ..configs import Geometry
from ..geometry import (
    AdaptiveGeometry,
    ConvGeometry,
    FractionalGeometry,
    GroupGeometry,
    NormGeometry,
    PoolGeometry,
    RowGeometry,
)
from . import calls
from .common import clock, difference, tuples
from .operators import OPERATORS, convolution

__all__ = ["ALGORITHMS", "OPERATORS", "geometry_of", "is_call", "problem_of", "tiles_of"]

ALGORITHMS = tuple(f"{op}_algorithm" for op in ("fprop", "dgrad", "wgrad", "conv1d_fprop", "conv1d_dgrad"))
# What launches Winograd's algorithm, where that is not `launch.winograd`.
_FAST = {"wgrad": launch.winograd_wgrad, **dict.fromkeys(("conv1d_fprop", "conv1d_dgrad"), launch.conv1d_winograd)}
# The first whose fields a key has is the key's.
_GEOMETRIES = FractionalGeometry, ConvGeometry, PoolGeometry, AdaptiveGeometry, GroupGeometry, NormGeometry


def is_call(key: Mapping) -> bool:
    return "arguments" in key


def problem_of(key: Mapping, device: torch.device) -> Problem:
    """Raises `ValueError` for a key of another target than the one that runs on `device`."""
    engine = engines.engine_for(device)
    if engine is None or engine.target(device) != key["target"]:
        raise ValueError(f"cannot measure for {key['target']!r} on {device}")
    if is_call(key):
        return calls.problem(key, device)
    return (_algorithm_problem if key["op"] in ALGORITHMS else _operator_problem)(key, device)


def geometry_of(key: Mapping) -> Geometry:
    """That of an operator's key."""
    kind = next(kind for kind in _GEOMETRIES if {field.name for field in fields(kind)} <= key.keys())
    kind = RowGeometry if key["op"].startswith("conv1d_") else kind  # whose fields are a ConvGeometry's
    return kind(**{field.name: tuples(key[field.name]) for field in fields(kind)})


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
        check=lambda result: difference(result, exact(), dtype),
        prepare=prepare,
        clock=clock(device),
    )


def tiles_of(key: Mapping) -> list[dict]:
    """The keys that an algorithm's candidates ask for their tiles."""
    op, geometry = key["op"].removesuffix("_algorithm"), geometry_of(key)
    plain = {name: value for name, value in key.items() if name in ("dtype", "target")}
    asked = [plain | {"op": op} | asdict(geometry)]
    if op == "wgrad":
        asked.append(plain | {"op": "winograd_wgrad"} | asdict(geometry))
    else:
        fast = "conv1d_winograd" if isinstance(geometry, RowGeometry) else "winograd"
        asked.append(plain | {"op": fast} | asdict(configs.winograd.as_fprop(op, geometry)))
    return json.loads(json.dumps(asked))


def _algorithm_problem(key: Mapping, device: torch.device) -> Problem:
    launch.common.forget()  # what runs now is to have the tiles found since
    op, geometry, dtype = key["op"].removesuffix("_algorithm"), geometry_of(key), getattr(torch, key["dtype"])
    problem = geometry, dtype, key["target"]
    costs = configs.algorithms(op, *problem)
    fast = _FAST.get(op, launch.winograd)
    (by_gemm, exact), (by_winograd, _) = (
        convolution(op, geometry, dtype, device, made) for made in (launch.conv, fast)
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
        check=lambda result: difference(result, exact(), dtype),
        prepare=lambda candidates: None,
        clock=clock(device),
    )
