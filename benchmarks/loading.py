"""What each kernel costs on the CPU target: compiling it, finding it on disk, launching it.

Times are the measuring thread's CPU time, so that a busy machine counts for little. Two fresh processes load the same
kernels: the first with an empty cache on disk, the second with what the first has left there.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator

import torch

from tritonconv import launch
from tritonconv.cpu import engine
from tritonconv.engines import Launch
from tritonconv.geometry import ConvGeometry, NormGeometry, PoolGeometry

from .comparison import OURS, Row, figure
from .measure import printed_by

f32 = torch.float32

# C, size, K, R, stride, padding, groups: LeNet-5, ResNet-50, MobileNetV2
CONVOLUTIONS = (
    (1, 28, 6, 5, 1, 2, 1),
    (6, 14, 16, 5, 1, 0, 1),
    (3, 224, 64, 7, 2, 3, 1),
    (64, 56, 64, 3, 1, 1, 1),
    (64, 56, 256, 1, 1, 0, 1),
    (128, 56, 128, 3, 2, 1, 1),
    (512, 7, 512, 3, 1, 1, 1),
    (96, 56, 96, 3, 1, 1, 96),
)
LAUNCHES = 1000


def kernels() -> Iterator[tuple[str, Launch, tuple[torch.dtype, ...]]]:
    """Names, launches and tensors' dtypes of the library's kernels, as these networks use them."""
    for dtype in (f32, torch.bfloat16):
        for C, H, K, R, stride, padding, groups in CONVOLUTIONS:
            g = ConvGeometry(1, C, H, H, K, R, R, (stride,) * 2, ((padding,) * 2,) * 2, (1, 1), groups)
            name = f"{R}×{R} {C}→{K} {str(dtype).removeprefix('torch.')}"
            if launch.depthwise.takes(g):
                made = launch.depthwise
                yield f"fprop {name}", made.fprop_launch("cpu", g, dtype, "relu"), (dtype,) * 4 + (None,) * 6
                yield f"dgrad {name}", made.dgrad_launch("cpu", g, dtype), (dtype,) * 3
                yield f"wgrad {name}", made.wgrad_launch("cpu", g, dtype), (dtype, dtype, f32)
                continue
            yield f"fprop {name}", launch.conv.fprop_launch("cpu", g, dtype, "ieee", "relu"), (dtype,) * 4 + (None,) * 7
            made = launch.conv.dgrad_launch("cpu", g, dtype, "ieee", None)
            yield f"dgrad {name}", made, (dtype, dtype, None, dtype, *[None] * 5)
            yield f"wgrad {name}", launch.conv.wgrad_launch("cpu", g, dtype, "ieee", True), (dtype, dtype, f32)
    g = ConvGeometry(1, 64, 56, 56, 64, 3, 3, (1, 1), ((1, 1), (1, 1)))
    made = launch.winograd.fprop_launch("cpu", g, f32, "ieee", "relu", threads=2)
    yield "winograd 3×3 64→64", made, (f32,) * 4 + (None,) * 8 + (f32,)
    made = launch.winograd.filter_launch("cpu", "fprop", g, (576, 9, 3, 1), made.constexprs["OUT"], 32)
    yield "winograd_filter", made, (f32, f32)
    norm = NormGeometry(56 * 56, 64)
    yield "norm_moments", launch.norm.moments_launch("cpu", norm, f32), (f32,) * 2
    yield "norm_apply", launch.norm.apply_launch("cpu", norm, f32, 1e-5, "relu"), (f32,) * 5 + (None, None, f32)
    problem, given = ("cpu", norm, f32, 1e-5, "relu"), (f32, None, *(f32,) * 5, None)
    yield "norm_backward_sums", launch.norm.backward_sums_launch(*problem), (*given, f32)
    yield "norm_backward", launch.norm.backward_launch(*problem), (*given, f32, f32, None)
    g = PoolGeometry(1, 64, 112, 112, 3, 3, (2, 2), (1, 1))
    yield "max_pool 3×3", launch.pool.max_pool_launch("cpu", g, f32), (f32, f32, torch.int64)
    dtypes = f32, torch.int64, f32
    yield "max_pool_backward 3×3", launch.pool.max_pool_backward_launch("cpu", g, f32), dtypes
    yield "sum_splits", launch.common.sum_splits_launch("cpu", 4, 36864), (f32, f32)
    yield "pack", launch.packing.pack_launch("cpu", (1, 9, 64, 64), (0, 64, 1, 576), 64), (f32, f32)


def load_each() -> None:
    """In a child process: prints the CPU milliseconds that each kernel took to become ready to run, as JSON."""
    times = {}
    first = launch.common.sum_splits_launch("cpu", 2, 10)
    engine.load([engine.request(first, (torch.float16,) * 2)])  # and what is done only once
    for name, start, dtypes in kernels():
        before = time.thread_time()
        engine.load([engine.request(start, dtypes)])
        times[name] = 1e3 * (time.thread_time() - before)
    json.dump(times, sys.stdout)


def launch_microseconds() -> list[float]:
    """CPU times of the library's launch of one small program, machine code included."""
    g = ConvGeometry(1, 4, 1, 1, 4, 1, 1)
    start = launch.conv.fprop_launch("cpu", g, f32, "ieee", "relu")
    run = engine.bind(start)
    x, panels, bias, y = torch.zeros(4), torch.zeros(4 * start.constexprs["BN"]), torch.zeros(4), torch.zeros(4)
    tensors = x, panels, bias, y, *(None,) * 7
    run(*tensors)
    rounds = []
    for _ in range(60):
        before = time.thread_time()
        for _ in range(LAUNCHES):
            run(*tensors)
        rounds.append((time.thread_time() - before) / LAUNCHES)
    return [1e6 * seconds for seconds in rounds]


def measure() -> Iterator[Row]:
    code = f"from {__spec__.name} import load_each; load_each()"
    with tempfile.TemporaryDirectory() as cache:
        loads = [printed_by(code, TRITONCONV_CACHE_DIR=cache) for _ in range(2)]
    found = dict(zip(("compile a kernel", "load it from disk"), loads, strict=True))
    for group, times in found.items():
        for name in sorted(times, key=times.get):
            yield Row(group, name, "ms", {OURS: figure([times[name]])})
    yield Row("launch", "a small program", "µs", {OURS: figure(launch_microseconds())})
