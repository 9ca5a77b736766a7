"""`plan(model, sample)`: the sites of a model as the compiler sees them, before anything is changed."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from .. import engines, launch
from ..configs import Geometry, TileConfig, winograd
from ..geometry import ConvGeometry, PoolGeometry, RowGeometry
from ..launch import depthwise
from ..launch.common import algorithm_of, config_of
from ..patching.reporting import Printable, Site
from ..patching.swap import name_of
from ..timing import turns
from .summarizing import pair, times
from .survey import Layer, intensity, survey


@dataclass(frozen=True)
class Ceilings:
    """What torch reaches on a device: FLOP/s of a large matrix product, byte/s of a large copy."""

    flops: float
    bytes: float

    @property
    def ridge(self) -> float:
        """FLOPs per byte above which a layer is bound by arithmetic."""
        return self.flops / self.bytes


@functools.cache
def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measured here and now, in about a tenth of a second."""
    size, elements = (512, 1 << 23) if device.type == "cpu" else (4096, 1 << 27)
    a = torch.ones(size, size, dtype=dtype, device=device)
    source = torch.ones(elements, dtype=dtype, device=device)
    target = torch.empty_like(source)
    runs = (lambda: a @ a), (lambda: target.copy_(source))
    product, copy = map(min, turns(runs, seconds=0.0, warm=1, device=device))
    return Ceilings(2 * size**3 / product, 2 * elements * dtype.itemsize / copy)


@dataclass(frozen=True)
class Step:
    """A call of a site.

    geometry, algorithm, config: what its kernel is chosen by and what it is; no algorithm if torch runs it, and
        no config where there is no choice.
    bytes: input, parameters, residual and output, each moved once; what is between fused operators does not move.
    at_best: seconds that the machine's ceilings allow; no prediction.
    bound: which ceiling that is, "compute" or "memory".
    reason: why torch runs it, or why no more is fused; "" if there is nothing to say.
    """

    site: Site
    input: tuple[int, ...]
    output: tuple[int, ...]
    geometry: Geometry | None
    algorithm: str | None
    config: TileConfig | None
    flops: int
    bytes: int
    at_best: float
    bound: str
    reason: str

    @property
    def intensity(self) -> float:
        return intensity(self.flops, self.bytes)


@dataclass(frozen=True)
class Plan(Printable):
    """The calls of the sites of the model `name`, as they run, and the sites that the sample does not reach."""

    name: str
    engine: str
    ceilings: Ceilings
    steps: tuple[Step, ...]
    unreached: tuple[Site, ...]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __rich__(self) -> Table:
        limit = self.ceilings
        caption = (
            f"engine: {self.engine}; torch reaches {limit.flops / 1e9:.0f} GFLOP/s and {limit.bytes / 1e9:.1f} GB/s "
            f"here, so compute bounds above {limit.ridge:.1f} FLOPs per byte"
        )
        table = Table(title=f"tritonconv: plan of {self.name}", caption=caption)
        for heading in ("site", "pattern", "output", "geometry", "runs as", "tile"):
            table.add_column(heading, overflow="fold")
        for heading in ("FLOPs / byte", "at best, ms"):
            table.add_column(heading, justify="right")
        for heading in ("bound", "reason"):
            table.add_column(heading, overflow="fold")
        for step in self:
            table.add_row(
                escape(step.site.fqn or "(model)"), step.site.pattern, times(step.output),
                _describe(step.geometry), step.algorithm or "torch", _tile(step.config), f"{step.intensity:.1f}",
                f"{1e3 * step.at_best:.3f}", step.bound, escape(step.reason),
            )  # fmt: skip
        for site in self.unreached:
            reason = "; ".join(filter(None, ("the sample does not reach it", site.reason)))
            table.add_row(escape(site.fqn), site.pattern, *[""] * 7, escape(reason))
        return table

    def to_json(self) -> str:
        """A JSON object {"model", "engine", "ceilings", "steps": [{site, input, output, geometry, algorithm, config,
        flops, bytes, intensity, at_best, bound, reason}, …], "unreached": [site, …]}."""
        steps = [asdict(step) | {"intensity": step.intensity} for step in self]
        plan = {"model": self.name, "engine": self.engine, "ceilings": asdict(self.ceilings), "steps": steps}
        return json.dumps(plan | {"unreached": [asdict(site) for site in self.unreached]}, indent=2)


_AVERAGED = "conv2d+avg_pool2d", "conv2d+adaptive_avg_pool2d"


def plan(model: nn.Module, sample: object) -> Plan:
    """What `patch` would make of `model`: per site the kernel, its tile, what bounds it, or why torch runs it.

    sample: the model's input, a tuple of its inputs, or a dict of them by name. It is run twice, as inference, by the
    unpatched model, which stays as it is. Raises `ValueError` if the model cannot run it.
    """
    layers, sites = survey(model, sample, "plan")
    first = layers[0]
    limit = ceilings(first.device, first.dtype)
    engine = engines.engine_for(first.device)
    steps = tuple(_steps(layers, limit))
    reached = {name for step in steps for name in (step.site.fqn, *step.site.members)}
    unreached = tuple(site for site in sites if site.fqn not in reached)
    return Plan(name_of(model), engine.name if engine else "none", limit, steps, unreached)


def _steps(layers: list[Layer], limit: Ceilings) -> Iterator[Step]:
    calls: list[list[Layer]] = []
    latest: dict[Site, list[Layer]] = {}
    for layer in layers:
        site = layer.site
        if site is None:
            continue
        if site not in latest or layer.name == site.fqn:  # else it goes on with the call that runs
            latest[site] = []
            calls.append(latest[site])
        latest[site].append(layer)
    return (_step(covered, limit) for covered in calls)


def _step(covered: list[Layer], limit: Ceilings) -> Step:
    if covered[0].site.pattern in _AVERAGED and not covered[0].refusal:
        covered = [_behind_the_means(covered[0], covered[-1])]
    first, last = covered[0], covered[-1]
    site, geometry, config = first.site, None, None
    algorithm = None if first.refusal else "direct"
    if algorithm and first.problem:
        op, geometry = first.problem
        algorithm, op, problem = _choice(op, geometry, first)
        pooled = [layer.problem[1] for layer in covered[1:] if layer.problem and layer.problem[0] == "max_pool"]
        if pooled and algorithm == "implicit GEMM":
            problem = problem.firsts(pooled[0].stride)
        config = config_of(op, problem, first.dtype, _target(first))
    flops = sum(layer.flops for layer in covered)
    residual = math.prod(last.output) * last.dtype.itemsize if "+add" in site.pattern else 0
    left_out = (math.prod(first.output) - math.prod(last.output)) * last.dtype.itemsize  # of what is pooled
    moved = first.bytes + residual - left_out
    seconds = {"compute": flops / limit.flops, "memory": moved / limit.bytes}
    bound = max(seconds, key=seconds.get)
    chosen = geometry, algorithm, config
    reason = first.refusal or site.reason
    return Step(site, first.input, last.output, *chosen, flops, moved, seconds[bound], bound, reason)


def _behind_the_means(conv: Layer, pool: Layer) -> Layer:
    """A 1 × 1 convolution that runs after the average pooling that the model has after it."""
    (op, geometry), (P, Q) = conv.problem, pool.output[-2:]
    left_out = (math.prod(conv.output) - math.prod(pool.output)) * conv.dtype.itemsize
    means = math.prod(conv.input[:-2]) * P * Q * conv.dtype.itemsize  # written, and read
    flops = conv.flops * P * Q // math.prod(conv.output[-2:])
    problem, moved = (op, replace(geometry, H=P, W=Q)), conv.bytes - left_out + 2 * means
    return replace(conv, output=pool.output, flops=flops, bytes=moved, problem=problem)


def _choice(op: str, geometry: Geometry, layer: Layer) -> tuple[str, str, Geometry]:
    """How `op` is computed, and the operation and geometry that the tile is chosen for: as the launches do."""
    if not isinstance(geometry, ConvGeometry):
        return "direct", op, geometry
    if isinstance(geometry, RowGeometry):
        op = f"conv1d_{op}"
        if algorithm_of(op, geometry, layer.dtype, _target(layer)) == "winograd":
            return "Winograd", "conv1d_winograd", winograd.as_fprop(op, geometry)
        return "implicit GEMM", op, geometry
    if depthwise.takes(geometry):
        return "direct", f"depthwise_{op}", geometry
    if algorithm_of(op, geometry, layer.dtype, _target(layer)) == "winograd":
        wgrad = op == "wgrad"
        return "Winograd", *(("winograd_wgrad", geometry) if wgrad else ("winograd", winograd.as_fprop(op, geometry)))
    if op == "dgrad" and launch.conv.spreads(geometry):
        return "implicit GEMM", "fprop", launch.conv.spread(geometry)
    overlap = op == "fprop" and launch.conv.overlaps(geometry)
    return "implicit GEMM", op, launch.conv.overlapping(geometry) if overlap else geometry


def _target(layer: Layer) -> str:
    return engines.engine_for(layer.device).target(layer.device)


def _describe(geometry: Geometry | None) -> str:
    """Window, stride and channels, where there are any."""
    if not isinstance(geometry, ConvGeometry | PoolGeometry):
        return ""
    text = f"{geometry.R}×{geometry.S}"
    if geometry.stride != (1, 1):
        text += f" / {pair(geometry.stride)}"
    if isinstance(geometry, ConvGeometry):
        text += f", {geometry.C} → {geometry.K}" + (f" in {geometry.groups} groups" if geometry.groups > 1 else "")
    return text


def _tile(config: TileConfig | None) -> str:
    return "" if config is None else times(tuple(size for size in (config.BM, config.BN, config.BK) if size > 1))
