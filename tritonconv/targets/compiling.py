"""`tritonconv compile`: all kernels that a model needs, compiled, ranked and packed for a machine that is not here."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
import triton
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

import autotune
from autotune import shipped, store
from autotune.session import describe

from .. import configs, engines, measuring, tuning
from ..configs import TileConfig, gpu
from ..cpu import engine as native
from ..cpu.forks import forked
from ..engines import Typed
from ..patching import swap
from ..patching.patch import patch
from . import machine_code, package
from .machine_code import SPILL, TARGETS, MachineCode, matching

CANDIDATES = 4  # of a problem, the best by a prediction that needs no compiling: these are compiled, and ranked again
_GEMMS = "fprop", "dgrad", "wgrad"


@dataclass(frozen=True)
class Choice:
    """What is chosen for a key, with its predicted cost, and that of what a prediction without compiling would take."""

    key: Mapping
    config: Mapping
    cost: float
    uncompiled: float


def compile_package(
    model: nn.Module, sample: tuning.Sample, target: str, folder: Path, console: Console | None = None
) -> package.Package:
    """Packs what `model`, patched or not, runs for `sample` on a target ("cpu": machines like this one): forward and,
    in training mode, backward. No kernel runs; the model and the sample lie on the CPU, and stay as they are.

    Configs that the store holds for the target are taken; those of GEMMs for GPUs are otherwise ranked by what they
    compile to. Raises `ValueError` for a target that is unknown, and `OSError` if `folder` cannot be written.
    """
    if target != "cpu" and target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(('cpu', *TARGETS))}; got {target!r}")
    package.check_writable(folder)
    device = tuning.device_of(sample)
    if all(swap.plan_of(module) is None for module in model.modules()):
        model = patch(copy.deepcopy(model))
    console = console or Console(stderr=True)
    options = {"auto_refresh": False, "transient": True, "disable": not console.is_terminal}
    with Progress(console=console, **options) as progress:
        track = partial(_tracked, progress)
        keys, _ = _listed(model, sample, device, target)
        known = [entry for key in keys if (entry := store.entry_of(key) or shipped.entry_of(key)) is not None]
        lacking = [key for key in keys if key["op"] in measuring.OPERATORS and autotune.lookup(key) is None]
        choices = [] if target == "cpu" else _ranked(lacking, target, device, track)
        with tempfile.TemporaryDirectory() as room, store.at(Path(room)):
            for entry in known:
                store.write(entry)
            for choice in choices:
                about = {"how": "predicted", "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
                versions = {"device": target, "torch": torch.__version__, "triton": triton.__version__}
                autotune.record(choice.key, choice.config, about | versions | {"cycles": choice.cost})
            entries = [entry for _, entry in store.entries() if isinstance(entry, dict)]
            _, launches = _listed(model, sample, device, target)
        tuning.forget()
        make = _native if target == "cpu" else partial(_for_gpu, target)
        kernels, table = make(launches, track)
    report = _report(swap.name_of(model), model.training, target, table, choices)
    return package.write(folder, target, kernels, entries, report)


def _tracked(progress: Progress, what: str, items: Iterable, total: int) -> Iterable:
    task = progress.add_task(what, total=total)
    for item in items:
        yield item
        progress.update(task, advance=1, refresh=True)


def _listed(model: nn.Module, sample, device: torch.device, target: str) -> tuple[list[dict], list[Typed]]:
    """What a run looks up there, and what it launches, each once."""
    with autotune.asked() as keys, engines.listing(device, target) as launches:
        tuning.run(tuning.hollow(model), sample)
    return keys, list(distinct(launches).values())


def distinct(launches: Iterable[Typed]) -> dict[Hashable, Typed]:
    """The launches, each once, by what distinguishes them."""
    different = {}
    for launch, dtypes in launches:
        constexprs = tuple((name, repr(value)) for name, value in launch.constexprs.items())
        options = *launch.options.items(), *launch.boxes.items()
        different[launch.kernel, launch.sizes, constexprs, options, dtypes] = launch, dtypes
    return different


def _ranked(keys: Sequence[Mapping], target: str, device: torch.device, track) -> list[Choice]:
    """The best config of each key: of GEMMs by what the first `CANDIDATES` compile to, those of all keys side by side;
    candidates that do not compile are left out."""
    spaces, tried = [], []
    for key in keys:
        problem = key["op"], measuring.geometry_of(key), getattr(torch, key["dtype"])
        space = configs.space(*problem, target)
        spaces.append(space)
        if key["op"] in _GEMMS and len(space) > 1:
            run, _ = measuring.OPERATORS[key["op"]](*problem, device)
            for config in space[:CANDIDATES]:
                with engines.listing(device, target) as launches:
                    run(asdict(config))()
                tried.append((len(spaces) - 1, config, problem, launches[0]))
    costs = [{} for _ in keys]
    codes = forked(partial(_code, target), [typed for *_, typed in tried])
    for (at, config, problem, (launch, _)), code in zip(tried, track("ranking", codes, len(tried)), strict=True):
        if code is not None:
            figures = code.occupancy, matching(code.code, SPILL)
            tf32 = launch.constexprs["PRECISION"] == "tf32"
            costs[at][config] = gpu.cycles(config, *problem, tf32, target, *figures)
    return [_cheapest(*each) for each in zip(keys, spaces, costs, strict=True)]


def _cheapest(key: Mapping, space: Sequence[TileConfig], costs: Mapping[TileConfig, float]) -> Choice:
    best = min(costs, key=costs.get, default=space[0])
    cost = costs.get(best, 0.0)
    return Choice(key, asdict(best), cost, costs.get(space[0], cost))


def _code(target: str, typed: Typed) -> MachineCode | None:
    try:
        return machine_code.compile_launch(*typed, target)
    except Exception:  # compilers fail in any way, as of what needs more shared memory than there is
        return None


def _native(launches: Sequence[Typed], track) -> tuple[dict, Table]:
    requests = [native.request(launch, dtypes) for launch, dtypes in launches]
    table = _table("kernel", "tile", "code, KiB", "scratch memory a thread, KiB")
    kernels = {}
    loaded = native.load(requests)
    for (launch, _), request, kernel in zip(launches, requests, track("packing", loaded, len(loaded)), strict=True):
        binary = kernel.binary
        kernels[request.name] = {"kernel": binary.pack()}
        sizes = len(binary.image), binary.scratch
        table.add_row(launch.kernel.__name__, _tile(launch), *(f"{size / 1024:.1f}" for size in sizes))
    return kernels, table


def _for_gpu(target: str, launches: Sequence[Typed], track) -> tuple[dict, Table]:
    headings = "kernel", "tile", "warps", "stages", "registers", "spills", "shared, KiB", "programs a multiprocessor"
    table = _table(*headings, "code, KiB")
    kernels = {}
    codes = forked(partial(_compiled, target), launches)
    for (launch, _), (code, name, files) in zip(launches, track("compiling", codes, len(launches)), strict=True):
        kernels[name] = files
        spills, size = matching(code.code, SPILL), sum(map(len, files.values()))
        figures = launch.num_warps, launch.num_stages, code.registers, spills
        memory = f"{code.shared_bytes / 1024:.0f}", str(code.occupancy), f"{size / 1024:.0f}"
        table.add_row(launch.kernel.__name__, _tile(launch), *map(str, figures), *memory)
    return kernels, table


def _compiled(target: str, typed: Typed) -> tuple[MachineCode, str, dict[str, bytes]]:
    return machine_code.compile_launch(*typed, target), *machine_code.files(*typed, target)


def _tile(launch: engines.Launch) -> str:
    return "×".join(str(launch.constexprs[name]) for name in ("BM", "BN", "BK", "BLOCK") if name in launch.constexprs)


def _table(*headings: str) -> Table:
    table = Table(box=box.MARKDOWN)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _report(name: str, training: bool, target: str, kernels: Table, choices: Sequence[Choice]) -> str:
    ranking = _table("problem", "chosen", "predicted cycles", "of the choice made without compiling")
    for choice in choices:
        costs = (f"{cost:.3g}" if cost else "" for cost in (choice.cost, choice.uncompiled))
        ranking.add_row(describe(choice.key), describe(choice.config), *costs)
    console = Console(width=400, color_system=None)
    with console.capture() as capture:
        console.print(f"# {name} for {target}, {'training' if training else 'inference'}\n")
        console.print(f"Compiled with triton {triton.__version__}, torch {torch.__version__}; nothing ran there.\n")
        console.print("## Kernels", kernels, sep="\n")
        if choices:
            console.print("## Configs, chosen by prediction", ranking, sep="\n")
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
