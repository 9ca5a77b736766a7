"""Prints the machine code's figures of typical layers: `python -m tritonconv.figures [TARGET …]`. No GPU is needed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import triton
from rich import box
from rich.console import Console
from rich.table import Table

from . import launch
from .engines import Launch
from .geometry import ConvGeometry, NormGeometry, PoolGeometry
from .machine_code import MATRIX, SPILL, TARGETS, compile_launch, matching

LAYERS = {
    "3×3, 64 → 64, 56²": ConvGeometry(32, 64, 56, 56, 64, 3, 3, (1, 1), ((1, 1), (1, 1))),
    "3×3, 256 → 256, 14²": ConvGeometry(32, 256, 14, 14, 256, 3, 3, (1, 1), ((1, 1), (1, 1))),
    "3×3 / 2, 128 → 128, 56²": ConvGeometry(32, 128, 56, 56, 128, 3, 3, (2, 2), ((1, 1), (1, 1))),
    "1×1, 256 → 64, 56²": ConvGeometry(32, 256, 56, 56, 64, 1, 1),
}
NORM = NormGeometry(32 * 56 * 56, 256)
POOL = PoolGeometry(32, 64, 112, 112, 3, 3, (2, 2), (1, 1))
f16, f32 = torch.float16, torch.float32
# name, dtype, precision of products, layers
ARITHMETICS = (
    ("float16", f16, "ieee", tuple(LAYERS)),
    ("TF32", f32, "tf32", ("3×3, 256 → 256, 14²",)),
    ("float32", f32, "ieee", ("3×3, 256 → 256, 14²",)),
)
FMA = r"FFMA|v_(pk_)?fma"  # which products become without matrix instructions
HEADINGS = (
    *("layer", "arithmetic", "kernel", "tile", "warps", "stages"),
    *("registers", "spills", "shared KiB", "programs", "products", "others each"),
)
Case = tuple[str, str, str, Launch, tuple[torch.dtype, ...]]


def cases(target: str) -> Iterator[Case]:
    """(layer, arithmetic, kernel, launch, dtypes of its tensors) of all kernels, with their predicted configs."""
    for name, dtype, precision, layers in ARITHMETICS:
        if precision == "tf32" and not target.startswith("sm_"):  # where the library never asks for it
            continue
        for layer in layers:
            problem = target, LAYERS[layer], dtype, precision
            yield layer, name, "fprop", launch.conv.fprop_launch(*problem, "relu"), (dtype,) * 4 + (None,) * 6
            made = launch.conv.dgrad_launch(*problem, None)
            yield layer, name, "dgrad", made, (dtype, dtype, None, dtype, *[None] * 4)
            yield layer, name, "wgrad", launch.conv.wgrad_launch(*problem, True), (dtype, dtype, f32)
    layer = "64, 112²"
    yield layer, "float16", "max_pool", launch.pool.max_pool_launch(target, POOL, f16), (f16, f16, torch.int64)
    made = launch.pool.max_pool_backward_launch(target, POOL, f16)
    yield layer, "float16", "max_pool_backward", made, (f16, torch.int64, f16)
    problem = target, NORM, f16, 1e-5, "relu"
    layer = "256, 56²"
    yield layer, "float16", "norm_moments", launch.norm.moments_launch(*problem[:3]), (f16, f32)
    yield layer, "float32", "norm_finalize", launch.norm.finalize_launch(target, NORM, 128), (f32,) * 3
    yield layer, "float16", "norm_apply", launch.norm.apply_launch(*problem), (f16, *(f32,) * 4, f16, f16)
    yield layer, "float16", "norm_backward_sums", launch.norm.backward_sums_launch(*problem), (f16,) * 3 + (f32,) * 3
    made = launch.norm.backward_launch(*problem)
    yield layer, "float16", "norm_backward", made, (*(f16,) * 3, *(f32,) * 4, f16, f16)
    yield "4 × 36864", "float16", "sum_splits", launch.common.sum_splits_launch(target, 4, 36864), (f32, f16)


def figures(made: Launch, dtypes: tuple[torch.dtype, ...], target: str) -> Iterator[str]:
    """The cells of a row, from "tile" on."""
    code = compile_launch(made, dtypes, target)
    yield "×".join(str(made.constexprs[name]) for name in ("BM", "BN", "BK", "BLOCK") if name in made.constexprs)
    yield from map(str, (made.num_warps, made.num_stages, code.registers, matching(code.code, SPILL)))
    yield from (f"{code.shared_bytes / 1024:.0f}", str(code.occupancy))
    part = code.loop or code.code
    products = matching(part, MATRIX) or matching(part, FMA)
    if products:
        yield str(products) if code.loop else f"{products} unrolled"
        yield f"{part.total() / products - 1:.1f}"
    else:
        yield from "––"


def table(target: str) -> Table:
    table = Table(box=box.MARKDOWN)
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=True)
    for layer, arithmetic, kernel, made, dtypes in cases(target):
        table.add_row(layer, arithmetic, kernel, *figures(made, dtypes, target))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tritonconv.figures", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)} (default: all)")
    targets = parser.parse_args().targets or TARGETS
    for target in targets:
        if target not in TARGETS:
            parser.error(f"no target {target!r}; there are {', '.join(TARGETS)}")
    console = Console(width=200)
    for target in targets:
        console.print(f"\n### {target}, triton {triton.__version__}\n")
        console.print(table(target))


if __name__ == "__main__":
    main()
