"""PyTorch Inductor's Triton template of a 2-D convolution, rendered for a layer as Inductor does, without a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from torch._inductor.kernel.conv import conv2d_template
from torch._inductor.template_heuristics.triton import CUDAConfigHeuristic

from tritonconv.engines import Launch
from tritonconv.geometry import ConvGeometry

_HEAD = """import triton
import triton.language as tl


@triton.jit
def convolution2d({arguments}, out_ptr0):
{constants}"""


def source(geometry: ConvGeometry, blocks: dict[str, int]) -> str:
    """The template's source for channels_last tensors, with the sizes and strides as constants and a plain store."""
    g = geometry
    shapes = {"X": (g.N, g.C, g.H, g.W), "W": (g.K, g.Cg, g.R, g.S), None: g.output}
    constants = {
        "KERNEL_H": g.R, "KERNEL_W": g.S, "STRIDE_H": g.stride[0], "STRIDE_W": g.stride[1],
        "PADDING_H": g.padding[0][0], "PADDING_W": g.padding[1][0], "GROUPS": g.groups,
        "UNROLL": g.taps == 1, "ALLOW_TF32": False, **blocks,
    }  # fmt: skip

    def strides(name: str | None) -> tuple[int, ...]:
        _, C, H, W = shapes[name]
        return H * W * C, 1, W * C, C

    def def_kernel(*arguments: str) -> str:
        lines = [f"    {name}: tl.constexpr = {value}\n" for name, value in constants.items()]
        return _HEAD.format(
            arguments=", ".join(arguments), constants="".join([*lines, "    INDEX_DTYPE: tl.constexpr = tl.int32\n"])
        )

    def store_output(indices, value: str, mask: str, val_shape) -> str:
        offset = " + ".join(f"{index} * {stride}" for index, stride in zip(indices, strides(None), strict=True))
        return f"tl.store(out_ptr0 + tl.broadcast_to({offset}, {value}.shape), {value}, {mask})"

    return conv2d_template.template.render(
        def_kernel=def_kernel,
        size=lambda name, axis: shapes[name][axis],
        stride=lambda name, axis: strides(name)[axis],
        store_output=store_output,
        **constants,
    )


def launches(geometry: ConvGeometry, folder: Path) -> Iterator[tuple[str, Launch]]:
    """(tile, launch) for each of its default configs. Tensors: x, weight, y. The kernels' sources stay in `folder`."""
    for number, config in enumerate(CUDAConfigHeuristic().conv_configs):
        blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
        path = folder / f"convolution{geometry.C}_{geometry.H}_{geometry.stride[0]}_{number}.py"
        path.write_text(source(geometry, blocks), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        # Inductor lets windows of more than one tap have no more than four warps.
        warps = config.num_warps if geometry.taps == 1 else min(config.num_warps, 4)
        yield (
            "×".join(map(str, blocks.values())),
            Launch(module.convolution2d, (1, 1, 1), (), {}, warps, config.num_stages),
        )


DTYPES = (torch.float16,) * 3
