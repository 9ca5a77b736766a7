"""Memory of a training step of whole networks, against torch: what is kept for the backward pass, and the peak.

Kept: bytes of the tensors that autograd saves between forward and backward, parameters not counted. Peak: how far the
process grows beyond what it holds before a step (model, gradients, the optimizer's state), as the system counts it.
Total: the peak, and what the process held before. Each peer has a process of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import tritonconv
from tritonconv.launch.room import results

from .arithmetic import FLOAT32
from .comparison import OURS, Row, figure, parser, publish
from .measure import DEVICE, printed_by
from .peers import channels_last
from .training import PEERS, step_of
from .zoo import NETWORKS

# Kernels everywhere, as without a sample, and not only where they are faster. torch.compile's graphs keep what no hook
# sees.
EAGER = PEERS | {OURS: (channels_last, lambda model, x: tritonconv.patch(model))}
del EAGER["torch.compile"]
WHAT = {"kept": "kept for backward", "peak": "peak", "total": "total"}


def resident(what: str) -> int:
    """Bytes of memory that this process has (VmRSS), or has had at most since it was last asked to forget (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def grown(step) -> tuple[int, int]:
    """Bytes held before a step, and at most within."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return before, torch.cuda.max_memory_allocated()
    results.release()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    step()
    return before, resident("VmHWM")


def child(name: str, batch: int, peer: str) -> None:
    """Prints the bytes kept, the peak and the total, as JSON."""
    x = torch.randn(batch, *NETWORKS[name].input, device=DEVICE)
    step, parameters = step_of(EAGER[peer], NETWORKS[name].build().to(DEVICE), x, FLOAT32)
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()  # also compiles
    before, highest = grown(step)
    json.dump({"kept": sum(kept.values()), "peak": highest - before, "total": highest}, sys.stdout)


def measure(name: str, batch: int) -> Iterator[Row]:
    # Blocks of 64 KiB and more then go back to the system when they are freed, and do not count on.
    environment = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    found = {
        peer: printed_by(f"from {__spec__.name} import child; child({name!r}, {batch}, {peer!r})", **environment)
        for peer in EAGER
    }
    for what, group in WHAT.items():
        figures = {peer: figure([of[what] / 2**20]) for peer, of in found.items()}
        yield Row(f"{group}, batch {batch}", name, "MiB", figures, facts={"batch": batch, "what": what})


def main(arguments: Sequence[str] = ()) -> None:
    options = parser("memory", __doc__, NETWORKS, batches=(8,)).parse_args(arguments)
    names = options.only or NETWORKS
    rows = [row for batch in options.batch for name in names for row in measure(name, batch)]
    rows.sort(key=lambda row: (row.facts["batch"], tuple(WHAT).index(row.facts["what"])))
    publish("memory", "training step, fp32", rows, options)
