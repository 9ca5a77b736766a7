"""Searches many problems, each once: progress, budget, resumption, and sharing the work among processes."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import store
from .search import Problem, Trial, search


@dataclass(frozen=True)
class Outcome:
    """What became of a key.

    status: "measured" now, "stored" before, "left" for want of time, or "failed", then with the `error`.
    seconds, untuned: what the chosen configuration and the first of the candidates take, if measured now.
    """

    key: Mapping
    status: Literal["measured", "stored", "left", "failed"]
    config: Mapping | None = None
    seconds: float | None = None
    untuned: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Tuning:
    """What `tune` did, key by key. Prints as a table."""

    outcomes: tuple[Outcome, ...]

    def count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    def to_json(self) -> str:
        """A JSON array of {"key", "status", "config", "seconds", "untuned", "error"}."""
        return json.dumps([asdict(outcome) for outcome in self.outcomes], indent=2)

    def __rich__(self) -> Table:
        counts = ", ".join(f"{self.count(status)} {status}" for status in ("measured", "stored", "left", "failed"))
        table = Table("problem", "status", "chosen", "ms", "untuned, ms", caption=counts)
        for o in self.outcomes:
            times = ("" if t is None else f"{1e3 * t:.3f}" for t in (o.seconds, o.untuned))
            table.add_row(describe(o.key), o.status, o.error or describe(o.config or {}), *times)
        return table

    def __str__(self) -> str:
        console = Console(width=160, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def describe(mapping: Mapping) -> str:
    """On one line, for people: `op` first, what is true by its name alone, what is false or None not at all."""
    told = {name: value for name, value in mapping.items() if value is not None and value is not False}
    names = sorted(told, key=lambda name: (name != "op", name))
    values = {name: "" if told[name] is True else f"={_short(told[name])}" for name in names}
    return " ".join(_short(told[name]) if name == "op" else name + values[name] for name in names)


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + describe(value) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_short, value)) + "]"
    return str(value)


def deadline_of(budget: float | None) -> float:
    """When `budget` seconds, counted from now, will have passed. Raises `ValueError` unless they are positive."""
    if budget is not None and not budget > 0:
        raise ValueError(f"budget must be a positive number of seconds, or None for no limit; got {budget}")
    return float("inf") if budget is None else time.monotonic() + budget


def tune(
    stages: Sequence[Sequence[Mapping]],
    problem_of: Callable[[Mapping], Problem],
    provenance: Mapping,
    *,
    deadline: float = float("inf"),
    exhaustive: bool = False,
    console: Console | None = None,
) -> Tuning:
    """Searches what the store lacks of the keys, and stores each result at once. A stage may count on those before it.

    deadline: from `deadline_of`; then no search begins any more.
    Where torch.distributed runs, each rank takes its share of rank 0's keys, and after each stage all have all results.
    Raises `OSError` if the store cannot be written.
    """
    import torch.distributed as distributed  # here, because looking after the store takes no torch

    store.check_writable()
    shared = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if shared:
        box = [stages]
        distributed.broadcast_object_list(box)
        stages = [stage[distributed.get_rank() :: distributed.get_world_size()] for stage in box[0]]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = console or Console()
    options = {"auto_refresh": False, "transient": True}  # its thread would be at work when compilers fork
    outcomes = []
    with Progress(*columns, console=console, disable=not console.is_terminal, **options) as progress:
        task = progress.add_task("tuning", total=sum(map(len, stages)))
        for stage in stages:
            mine = []
            for key in stage:

                def show(best: Trial, label: str = describe(key)) -> None:
                    progress.update(task, description=f"{label}: {1e3 * best.seconds:.3f} ms", refresh=True)

                mine.append(_one(key, problem_of, provenance, deadline, exhaustive, show))
                progress.update(task, advance=1, refresh=True)
            outcomes += _gather(mine) if shared else mine
    return Tuning(tuple(outcomes))


def _one(key, problem_of, provenance, deadline, exhaustive, show) -> Outcome:
    stored = store.entry_of(key)
    if stored is not None and stored["provenance"].get("how") != "predicted":
        return Outcome(key, "stored", stored["config"])
    if store.is_later(key):
        return Outcome(key, "failed", error="its entry was written by a later version, and stays")
    if time.monotonic() > deadline:
        return Outcome(key, "left")
    start = time.monotonic()
    try:
        for best, trials in search(problem_of(key), exhaustive, deadline):  # noqa: B007
            show(best)
    except RuntimeError as error:
        return Outcome(key, "failed", error=str(error))
    found = {
        "how": "measured",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **provenance,
        "search_seconds": round(time.monotonic() - start, 3),
        "trials": [trial.to_json() for trial in trials],
    }
    store.record(key, best.config, found)
    untuned = trials[0].seconds if trials[0].times else None
    return Outcome(key, "measured", best.config, best.seconds, untuned)


def _gather(mine: list[Outcome]) -> list[Outcome]:
    """The outcomes of all ranks. Entries of the others are written here too, unless the store is one they share."""
    import torch.distributed as distributed

    entries = [entry for o in mine if o.status == "measured" and (entry := store.entry_of(o.key)) is not None]
    everyones = [None] * distributed.get_world_size()
    try:
        distributed.all_gather_object(everyones, (mine, entries))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        lost = "a rank is lost, and with it what it was measuring; the next run measures what is missing"
        warnings.warn(f"tune: {lost} ({reason})", RuntimeWarning, stacklevel=3)
        return mine
    store.forget()
    for _, entries in everyones:
        for entry in entries:
            if store.entry_of(entry["key"]) is None and not store.is_later(entry["key"]):
                store.write(entry)
    return [outcome for outcomes, _ in everyones for outcome in outcomes]
