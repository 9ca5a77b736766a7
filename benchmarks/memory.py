"""Memory of a training step of whole networks, against torch: what is kept for the backward pass, and the peak.

Kept: bytes of the tensors that autograd saves between forward and backward, parameters not counted. Peak: how far the
process grows beyond what it holds before a step (model, gradients, the optimizer's state), as the system counts it.
Each peer has a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from .comparison import WIDTH, Options
from .measure import provenance, save
from .training import PEERS, step_of
from .zoo import NETWORKS

EAGER = tuple(peer for peer in PEERS if peer != "torch.compile")  # whose graphs keep what no hook sees


def resident(what: str) -> int:
    """Bytes of memory that this process has (VmRSS), or has had at most since it was last asked to forget (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def child(name: str, batch: int, peer: str) -> None:
    """Prints the bytes kept, and the peak, as JSON."""
    step, parameters = step_of(peer, NETWORKS[name].build(), torch.randn(batch, *NETWORKS[name].input))
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()  # also compiles
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    step()
    json.dump({"kept": sum(kept.values()), "peak": resident("VmHWM") - before}, sys.stdout)


def measure(name: str, batch: int) -> dict[str, object]:
    row: dict[str, object] = {"network": name, "batch": batch}
    # Blocks of 64 KiB and more then go back to the system when they are freed, and do not count on.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    for peer in EAGER:
        command = [sys.executable, "-c", f"from {__spec__.name} import child; child({name!r}, {batch}, {peer!r})"]
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        row[peer] = json.loads(run.stdout)
    return row


def main(arguments: Sequence[str] = ()) -> None:
    options = Options.parse("memory", arguments, __doc__, batches=(8,))
    rows = [measure(name, batch) for batch in options.batches for name in options.names]
    table = Table("network", "batch", title="training step, fp32: MiB kept for backward, and peak")
    for what in ("kept", "peak"):
        for peer in EAGER:
            table.add_column(f"{what}\n{peer}".replace(" ", "\n"), justify="right")
    for row in rows:
        cells = (f"{row[peer][what] / 2**20:.1f}" for what in ("kept", "peak") for peer in EAGER)
        table.add_row(row["network"], str(row["batch"]), *cells)
    console = Console(width=WIDTH)
    console.print(table)
    console.print({k: v for k, v in provenance().items() if k != "commit"})
    if not options.partial:
        console.print(f"stored in {save('memory', rows)}")
