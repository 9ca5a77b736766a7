"""What a start costs: import, patch and the first inference of one image, against torch.compile; and each kernel.

Every first call is in a process of its own; cold, nothing is in the caches on disk, warm, what cold has left there.
Importing torch and making the network are not counted. The kernels' times are CPU times of one thread.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from . import loading
from .comparison import OURS, Row, figure, parser, publish
from .measure import DEVICE, printed_by
from .zoo import NETWORKS

USUAL = ("LeNet-5", "MobileNetV2", "ResNet-18", "ResNet-50")
WARM = 3  # starts
CACHES = "TRITONCONV_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def patched(model: nn.Module) -> Callable:
    import tritonconv

    return tritonconv.patch(model)


PEERS = {OURS: patched, "torch.compile": torch.compile}
# Run in a child without this package, whose import would import tritonconv.
_IMPORT = "import time, torch; t = time.perf_counter(); from tritonconv import patch; print(time.perf_counter() - t)"


def child(name: str, peer: str) -> None:
    """Prints the seconds that patching (or what stands for it) and the first and a later call take, as JSON."""
    model = NETWORKS[name].build().eval().to(DEVICE, memory_format=torch.channels_last)
    x = torch.randn(1, *NETWORKS[name].input, device=DEVICE).contiguous(memory_format=torch.channels_last)
    times = [time.perf_counter()]
    with torch.no_grad():
        run = PEERS[peer](model)
        times.append(time.perf_counter())
        for _ in range(2):
            run(x)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
    json.dump([after - before for before, after in zip(times, times[1:], strict=False)], sys.stdout)


def _run(code: str, cache: str) -> object:
    return printed_by(code, **dict.fromkeys(CACHES, cache))


def measure(name: str) -> Iterator[Row]:
    """Patch and first call, cold and warm."""
    cold, warm = {}, {}
    for peer in PEERS:
        code = f"from {__spec__.name} import child; child({name!r}, {peer!r})"
        with tempfile.TemporaryDirectory() as cache:
            cold[peer], *warm[peer] = (_run(code, cache) for _ in range(1 + WARM))
    yield _row("first inference, cold", name, {peer: [times] for peer, times in cold.items()})
    yield _row("first inference, warm", name, warm)


def _row(group: str, name: str, runs: dict[str, list[list[float]]]) -> Row:
    figures = {peer: figure([1e3 * (patch + first) for patch, first, _ in times]) for peer, times in runs.items()}
    parts = {f"{peer}: patch": 1e3 * times[0][0] for peer, times in runs.items()}
    return Row(group, name, "ms", figures, facts=parts)


def imported() -> Row:
    with tempfile.TemporaryDirectory() as cache:
        _run(_IMPORT, cache)  # compiles to bytecode
        times = [1e3 * _run(_IMPORT, cache) for _ in range(WARM)]
    return Row("import", "tritonconv.patch, beyond torch", "ms", {OURS: figure(times)})


def main(arguments: Sequence[str] = ()) -> None:
    options = parser("startup", __doc__, NETWORKS).parse_args(arguments)
    rows = [row for name in options.only or USUAL for row in measure(name)]
    rows = [imported(), *sorted(rows, key=lambda row: row.group)]
    publish("startup", "start", rows + list(loading.measure()), options)
