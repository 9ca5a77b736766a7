"""The machine code that GPU kernels become, counted, and beside it that of PyTorch Inductor's convolution template.

No GPU is needed: Triton compiles for each target, and what its disassemblers print is counted. The layers are, of the
kinds on which the networks spend the most work, the largest each, at a batch of 32. `python -m benchmarks compile`
writes docs/gpu-targets.md and results/compile.json. Compiles run side by side, and Triton keeps what it compiled.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton
from rich.console import Console
from rich.progress import track
from torch import nn
from torch._subclasses import FakeTensorMode

from tritonconv import configs, launch
from tritonconv.cpu.forks import forked
from tritonconv.engines import Launch
from tritonconv.geometry import ConvGeometry, NormGeometry
from tritonconv.targets.machine_code import MATRIX, SPILL, TARGETS, compile_launch, matching

from . import inductor
from .arithmetic import ARITHMETICS
from .calls import others
from .measure import markdown, reason, save
from .zoo import NETWORKS

DOCUMENT = Path(__file__).parents[1] / "docs" / "gpu-targets.md"
BATCH, KINDS = 32, 12
f16, f32, f64 = torch.float16, torch.float32, torch.float64
FMA = r"[FD]FMA|v_(pk_)?fma"  # which products become without matrix instructions


def _square(C: int, size: int, K: int, stride: int = 1, N: int = BATCH) -> ConvGeometry:
    return ConvGeometry(N, C, size, size, K, 3, 3, (stride, stride), ((1, 1), (1, 1)))


TYPICAL = _square(256, 14, 256)
SMALL = _square(512, 7, 512, N=1)  # whose few tiles leave most of a GPU idle
DEPTHWISE = replace(_square(144, 56, 144), groups=144)
COMPARED_ON = "sm_90"
COMPARED = _square(64, 56, 64), _square(256, 14, 256), _square(512, 7, 512), _square(128, 56, 128, 2)


@dataclass(frozen=True, eq=False)
class Case:
    """One compile. `layer`, `arithmetic`, `kernel` and `tile` say what of."""

    target: str
    layer: str
    arithmetic: str
    kernel: str
    tile: str
    launch: Launch
    dtypes: tuple[torch.dtype | None, ...]

    def row(self) -> dict[str, object]:
        """Its figures; "others": instructions of the main loop for each that multiplies."""
        head = {name: getattr(self, name) for name in ("target", "layer", "arithmetic", "kernel", "tile")}
        head |= {"warps": self.launch.num_warps, "stages": self.launch.num_stages}
        try:
            code = compile_launch(self.launch, self.dtypes, self.target)
        except Exception as error:  # whatever Triton's compiler raises is the figure of this row
            return head | {"error": reason(error)}
        part = code.loop or code.code
        pattern = MATRIX if matching(part, MATRIX) else FMA
        products = matching(part, pattern)
        return head | {
            "registers": code.registers,
            "spills": matching(code.code, SPILL),
            "shared": code.shared_bytes,
            "occupancy": code.occupancy,
            "loop": bool(code.loop),
            "products": products,
            "others": part.total() / products - 1 if products else None,
            "fits": code.occupancy > 0 and code.shared_bytes <= TARGETS[self.target].shared_program,
        }


def describe(g: ConvGeometry) -> str:
    """A layer as "3×3 / 2, 64 → 128, 56²"."""
    marks = "".join(
        mark
        for mark, said in (
            (f" / {g.stride[1]}", g.stride != (1, 1)),
            (f" dilated {g.dilation[1]}", g.dilation != (1, 1)),
            (f" in {g.groups} groups", g.groups > 1),
        )
        if said
    )
    size = f"{g.H}²" if g.H == g.W else f"{g.H}×{g.W}"
    batch = "" if g.N == BATCH else f", batch {g.N}"
    return f"{g.R}×{g.S}{marks}, {g.C} → {g.K}, {size}{batch}"


def layers() -> list[ConvGeometry]:
    """Of the KINDS kinds of 1-D and 2-D convolution with the most work in one layer of the networks, that layer."""
    most: dict[tuple, ConvGeometry] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], _) -> None:
        N, C, H, W = (*inputs[0].shape[:2], 1, *inputs[0].shape[2:])[-4:] if inputs[0].dim() == 3 else inputs[0].shape
        R, S = (1, *module.kernel_size)[-2:]
        stride, dilation = (1, *module.stride)[-2:], (1, *module.dilation)[-2:]
        pads = (0, *module.padding)[-2:]
        padding = (pads[0],) * 2, (pads[1],) * 2
        g = ConvGeometry(N, C, H, W, module.out_channels, R, S, stride, padding, dilation, module.groups)
        kind = R, S, stride, dilation != (1, 1), g.groups > 1, C <= 4
        if kind not in most or g.flops > most[kind].flops:
            most[kind] = g

    for network in NETWORKS.values():
        with FakeTensorMode():
            model = network.build().eval()
            for module in model.modules():
                if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                    module.register_forward_hook(note)
            model(torch.empty(BATCH, *network.input))
    return sorted(most.values(), key=lambda g: -g.flops)[:KINDS]


def tile_of(made: Launch) -> str:
    names = ("BM", "BN", "BK", "BLOCK", "BLOCK_N")
    tile = "×".join(str(made.constexprs[name]) for name in names if name in made.constexprs)
    split = made.constexprs.get("SPLIT", 1)
    return tile + (f" / {split}" if split > 1 else "") + (" boxed" if made.boxes else "")


def convolution(target: str, g: ConvGeometry, dtype: torch.dtype, precision: str) -> Iterator[tuple]:
    """(kernel, launch, dtypes of its tensors) of the three products of a layer, with their predicted configs."""
    summed = f64 if dtype is f64 else f32
    if launch.depthwise.takes(g):
        made = launch.depthwise
        yield "depthwise fprop", made.fprop_launch(target, g, dtype, "relu"), (dtype,) * 4 + (None,) * 6
        yield "depthwise dgrad", made.dgrad_launch(target, g, dtype), (dtype,) * 3
        yield "depthwise wgrad", made.wgrad_launch(target, g, dtype), (dtype, dtype, summed)
        return
    problem = target, launch.conv.overlapping(g) if launch.conv.overlaps(g) else g, dtype, precision
    made = launch.conv.fprop_launch(*problem, "relu", pixel=g.C)
    if made.constexprs["SPLIT"] > 1:
        yield "fprop", made, (dtype, dtype, None, summed) + (None,) * 7
        pixels = NormGeometry(g.N * g.P * g.Q, g.K)
        finish = launch.split.finish_launch(target, pixels, dtype, made.constexprs["SPLIT"], "relu", 0.0)
        yield "conv_finish", finish, (summed, dtype, dtype) + (None,) * 7
    else:
        yield "fprop", made, (dtype,) * 4 + (None,) * 7
    made = launch.conv.dgrad_launch(target, g, dtype, precision, None)
    stored = summed if made.constexprs["SPLIT"] > 1 else dtype
    yield "dgrad", made, (dtype, dtype, None, stored, *[None] * 5)
    yield "wgrad", launch.conv.wgrad_launch(*problem, True, pixel=g.C), (dtype, dtype, summed)


def cases(target: str) -> Iterator[Case]:
    """All kernels, with their predicted configs."""
    # All but the first arithmetic for one layer.
    problems = [(g, *ARITHMETICS[0]) for g in (*layers(), SMALL, DEPTHWISE)]
    problems += [(TYPICAL, *arithmetic) for arithmetic in ARITHMETICS]
    for g, name, dtype, precision in problems:
        if precision != "tf32" or target.startswith("sm_"):  # elsewhere the library never asks for it
            for kernel, made, dtypes in convolution(target, g, dtype, precision):
                yield Case(target, describe(g), name, kernel, tile_of(made), made, dtypes)
    for layer, kernel, made, dtypes in others(target):
        yield Case(target, layer, "float16", kernel, tile_of(made), made, dtypes)


def compared(target: str, folder: Path) -> Iterator[Case]:
    """fprop of the 3×3 layers, without an epilogue, in our configs that take boxes and split no sums, and all of
    Inductor's. Smaller tiles of ours have other, smaller matrix instructions, which say nothing beside these."""
    for g in COMPARED:
        for config in configs.space("fprop", g, f16, target):
            if config.boxed and config.SPLIT == 1:
                made = launch.conv.fprop_launch(target, g, f16, "ieee", None, config)
                dtypes = (f16, f16, None, f16) + (None,) * 7
                yield Case(target, describe(g), "float16", "ours", tile_of(made), made, dtypes)
        for tile, theirs in inductor.launches(g, folder):
            yield Case(target, describe(g), "float16", "Inductor", tile, theirs, inductor.DTYPES)


def best(rows: Sequence[dict]) -> dict | None:
    """Of the configs of a layer the one with the fewest instructions beside its products, of those that fit and spill
    nothing."""
    usable = [row for row in rows if row.get("fits") and row["products"] and not row["spills"]]
    return min(usable, key=lambda row: row["others"], default=None)


COLUMNS = (
    ("layer", lambda row: row["layer"]),
    ("arithmetic", lambda row: row["arithmetic"]),
    ("kernel", lambda row: row["kernel"]),
    ("tile", lambda row: row["tile"]),
    ("warps", lambda row: row["warps"]),
    ("stages", lambda row: row["stages"]),
    ("registers", lambda row: row["registers"]),
    ("spills", lambda row: row["spills"]),
    ("shared, KiB", lambda row: f"{row['shared'] / 1024:.0f}"),
    ("programs", lambda row: row["occupancy"]),
    ("products", lambda row: (f"{row['products']}{'' if row['loop'] else ' unrolled'}") if row["products"] else "–"),
    ("others each", lambda row: f"{row['others']:.1f}" if row["products"] else "–"),
)


def figures(rows: Sequence[dict]) -> str:
    """The table of one target."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([*(row[name] for name in ("layer", "arithmetic", "kernel", "tile")), row["error"]])
        else:
            lines.append([cell(row) for _, cell in COLUMNS])
    return markdown([heading for heading, _ in COLUMNS], lines)


def comparison(rows: Sequence[dict]) -> str:
    """Ours beside Inductor's, layer by layer."""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        here = [row for row in rows if row["layer"] == layer]
        ours, theirs = (best([row for row in here if row["kernel"] == name]) for name in ("ours", "Inductor"))
        for name, row in (("ours", ours), ("Inductor", theirs)):
            cells = [row[key] for key in ("tile", "warps", "registers", "occupancy", "products")]
            share = f"{ours['others'] / theirs['others']:.2f}" if name == "ours" else ""
            lines.append([layer, name, *cells, f"{row['others']:.1f}", share])
    return markdown(
        ("layer", "", "tile", "warps", "registers", "programs", "products", "others each", "share of theirs"), lines
    )


ABOUT = """# GPU targets

What the kernels become for GPUs, compiled and disassembled; nothing has run for this. Written by `python -m benchmarks
compile`. What did run: [gpu.md](gpu.md).

Tiles are BM × BN × BK; "/ 4" says that the reduction is split in four, "boxed" that operands come through tensor
descriptors (UTMALDG). "programs" is how many a multiprocessor holds. "products" counts matrix instructions (else fused
multiply-adds) of the main loop, or of all the code where the loop is unrolled; "others each" is how many other
instructions there are for each. Matrix instructions are not all of one size: on sm_90 one multiplies 64 × BN × 16.
"""
BESIDE = """## Beside PyTorch Inductor

fprop in float16 on {target}, and the Triton template of `torch._inductor.kernel.conv` rendered for the same layer with
each of its default configs and compiled by the same Triton. Shown is the config of either with the fewest other
instructions for each product, of those that fit and spill nothing, of ours those that take boxes. It need not be the
fastest: that takes a GPU.
"""


def main(arguments: Sequence[str] = ()) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks compile", description=__doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        ours = [case for target in TARGETS for case in cases(target)]
        everything = [*ours, *compared(COMPARED_ON, Path(folder))]
        rows = list(track(forked(Case.row, everything), "compiling", total=len(everything)))
    kernels, beside = rows[: len(ours)], rows[len(ours) :]
    tables = [f"## {target}\n\n{figures([row for row in kernels if row['target'] == target])}\n" for target in TARGETS]
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    parts = ABOUT, BESIDE.format(target=COMPARED_ON), comparison(beside) + "\n", *tables, versions
    DOCUMENT.write_text("\n".join(parts) + "\n", encoding="utf-8")
    stored = save("compile", kernels, inductor=beside)
    Console().print(f"{len(rows)} compiles, written to {DOCUMENT} and {stored}")
