"""Measures the entries that are shipped for machines like this one: where the networks' tiles and algorithms are faster
than the predicted ones by a tenth, in both of two measurements.

The networks' problems are those of inference of one image, and of a training step. What is stored already is not
measured again, so a run that was interrupted, or whose budget is spent, goes on where it was.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

import autotune
import tritonconv
from autotune import files, quality, store
from tritonconv import measuring, tuned, tuning

from .peers import channels_last
from .zoo import NETWORKS

CPU = torch.device("cpu")
GAIN = 1.1  # less does not show in a network


def keys(network: str, batch: int, training: bool) -> list[dict]:
    """What kernels look up in the network; which calls torch runs faster depends on what is around them."""
    model, x = channels_last(NETWORKS[network].build(), torch.randn(batch, *NETWORKS[network].input))
    found = tuning.problems(tritonconv.patch(model.train(training)), x)
    return [key for key in found if not measuring.is_call(key)]


def gain(entry: Mapping) -> float:
    """The predicted choice's time over the chosen one's."""
    return quality.measured_trials(entry)[0]["seconds"] / quality.seconds_of(entry)


def confirmed(entries: Sequence[dict], console: Console) -> list[dict]:
    """Those of the entries that gain enough, and do when they are measured anew."""
    first = {store.canonical(entry["key"]): entry for entry in entries if gain(entry) >= GAIN}
    with tempfile.TemporaryDirectory() as folder, store.at(Path(folder)):
        tuning.tune_keys([entry["key"] for entry in first.values()], CPU, console=console)
        again = files.matching(())
    return [e for e in again if gain(e) >= GAIN and e["config"] == first[store.canonical(e["key"])]["config"]]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ship", description=__doc__)
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=NETWORKS, default=tuple(NETWORKS))
    parser.add_argument("--training-batch", metavar="N", type=int, default=8, help="default: %(default)s; 0: none")
    parser.add_argument("--budget", metavar="SECONDS", type=float, help="then the rest is left to another run")
    options, console = parser.parse_args(arguments), Console()
    deadline = autotune.deadline_of(options.budget)
    cases = [(1, False), *([(options.training_batch, True)] if options.training_batch else [])]
    wanted = {}
    for batch, training in cases:
        for network in options.only:
            wanted |= {store.canonical(key): key for key in keys(network, batch, training)}
    done = tuning.tune_keys([*wanted.values()], CPU, deadline=deadline, console=console)
    if done.count("left"):
        console.print(f"{done.count('left')} of {len(wanted)} problems are left: run it again")
        return
    measured = [entry for name in wanted if (entry := store.entry_of(wanted[name])) is not None]
    machine = tuned.machine()
    path = tuned.FOLDER / f"{machine['processor']}-{machine['threads']}.json"
    kept = {store.canonical(e["key"]): e for e in (files.read(path) if path.exists() else ())}
    kept = {name: e for name, e in kept.items() if name not in wanted}
    kept |= {store.canonical(e["key"]): e for e in confirmed(measured, console)}
    files.export(path, [kept[name] for name in sorted(kept)], brief=True)
    console.print(f"{len(measured)} measured, {len(kept)} shipped in {path}", markup=False)
