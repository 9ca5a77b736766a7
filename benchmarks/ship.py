"""Measures the entries that are shipped for machines like this one: tiles and algorithms of the networks' problems.

They are those of inference of one image, and of a training step. What is stored already is not measured again, so a
run that was interrupted, or whose budget is spent, goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console

import autotune
import tritonconv
from autotune import files, store
from tritonconv import measuring, tuned, tuning

from .peers import channels_last
from .zoo import NETWORKS

CPU = torch.device("cpu")


def keys(network: str, batch: int, training: bool) -> list[dict]:
    """What kernels look up in the network; which calls torch runs faster depends on what is around them."""
    model, x = channels_last(NETWORKS[network].build(), torch.randn(batch, *NETWORKS[network].input))
    found = tuning.problems(tritonconv.patch(model.train(training)), x)
    return [key for key in found if not measuring.is_call(key)]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ship", description=__doc__)
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=NETWORKS, default=tuple(NETWORKS))
    parser.add_argument("--training-batch", metavar="N", type=int, default=8, help="default: %(default)s; 0: none")
    parser.add_argument("--budget", metavar="SECONDS", type=float, help="then nothing more is measured")
    options, console = parser.parse_args(arguments), Console()
    deadline = autotune.deadline_of(options.budget)
    cases = [(1, False), *([(options.training_batch, True)] if options.training_batch else [])]
    wanted = {}
    for batch, training in cases:
        for network in options.only:
            wanted |= {store.canonical(key): key for key in keys(network, batch, training)}
    done = tuning.tune_keys([*wanted.values()], CPU, deadline=deadline, console=console)
    console.print(", ".join(f"{done.count(status)} {status}" for status in ("measured", "stored", "left", "failed")))
    machine = tuned.machine()
    path = tuned.FOLDER / f"{machine['processor']}-{machine['threads']}.json"
    entries = {store.canonical(entry["key"]): entry for entry in (files.read(path) if path.exists() else ())}
    entries |= {store.canonical(o.key): entry for o in done.outcomes if (entry := store.entry_of(o.key)) is not None}
    files.export(path, [entries[name] for name in sorted(entries)], brief=True)
    console.print(f"{len(entries)} entries in {path}", markup=False)
