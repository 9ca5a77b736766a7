"""The kernels compile for GPUs that are not here, and their machine code is what it should be.

Compiles go through Triton's cache: the first run of this file takes minutes, later ones seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tritonconv import launch
from tritonconv.engines import Launch
from tritonconv.geometry import ConvGeometry, PoolGeometry
from tritonconv.machine_code import MATRIX, SPILL, TARGETS, MachineCode, compile_launch, matching

f16, bf16, f32 = torch.float16, torch.bfloat16, torch.float32

GEOMETRIES = {
    "3x3": ConvGeometry(32, 256, 14, 14, 256, 3, 3, (1, 1), ((1, 1), (1, 1))),
    "first 3x3": ConvGeometry(32, 64, 56, 56, 64, 3, 3, (1, 1), ((1, 1), (1, 1))),
    "1x1": ConvGeometry(32, 256, 56, 56, 64, 1, 1),
    "stride 2": ConvGeometry(32, 128, 56, 56, 128, 3, 3, (2, 2), ((1, 1), (1, 1))),
    "odd channels": ConvGeometry(8, 17, 30, 30, 33, 3, 3, (1, 1), ((1, 1), (1, 1))),
}
OPS = ("fprop", "dgrad", "wgrad")


@dataclass(frozen=True)
class Case:
    """One kernel of a convolution, with its predicted config."""

    op: str
    geometry: str
    dtype: torch.dtype
    precision: str = "ieee"

    def launch(self, target: str) -> tuple[Launch, tuple[torch.dtype, ...]]:
        geometry, dtype = GEOMETRIES[self.geometry], self.dtype
        if self.op == "fprop":
            return launch.fprop_launch(target, geometry, dtype, self.precision, "relu"), (dtype,) * 4
        if self.op == "dgrad":
            return launch.dgrad_launch(target, geometry, dtype, self.precision), (dtype,) * 3
        made = launch.wgrad_launch(target, geometry, dtype, self.precision, True)
        return made, (dtype, dtype, f32)  # partial sums

    def __str__(self) -> str:
        return f"{self.op}-{self.geometry}-{str(self.dtype)[6:]}-{self.precision}".replace(" ", "_")


def compiled(case: Case, target: str) -> MachineCode:
    made, dtypes = case.launch(target)
    return compile_launch(made, dtypes, target)


HALVES = [Case(op, "first 3x3", dtype) for op in OPS for dtype in (f16, bf16)]
FLOATS = [Case(op, "first 3x3", f32, precision) for op in OPS for precision in ("ieee", "tf32")]
OTHERS = [Case(op, geometry, f16) for op in OPS for geometry in ("3x3", "1x1", "stride 2", "odd channels")]
# What tl.dot becomes: mma, wgmma, tcgen05.mma, mfma.
INSTRUCTION = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC[A-Z]*MMA", "gfx942": "v_mfma"}


def check(code: MachineCode, target: str) -> None:
    assert matching(code.code, SPILL) == 0
    assert code.shared_bytes <= TARGETS[target].shared_program
    assert code.occupancy >= 1


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", HALVES + FLOATS + OTHERS, ids=str)
def test_convolutions_fit_the_target_and_use_its_matrix_instructions(case, target):
    code = compiled(case, target)
    check(code, target)
    # NVIDIA's tensor cores have no true float32: it is computed with FFMA.
    plain = case.dtype is f32 and case.precision == "ieee" and target != "gfx942"
    assert (matching(code.code, MATRIX) == 0) == plain


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_a_wide_layer_uses_the_targets_own_matrix_instruction(op, target):
    assert matching(compiled(Case(op, "3x3", f16), target).loop, INSTRUCTION[target])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", (f16, f32), ids=("half", "float"))
def test_other_kernels_fit_the_target(dtype, target):
    geometry = PoolGeometry(32, 64, 112, 112, 3, 3, (2, 2), (1, 1), (1, 1), False)
    indices = torch.int64
    for made, dtypes in (
        (launch.max_pool_launch(target, geometry, dtype), (dtype, dtype, indices)),
        (launch.max_pool_backward_launch(target, geometry, dtype), (dtype, indices, dtype)),
        (launch.sum_splits_launch(target, 4, 36864), (f32, dtype)),
    ):
        check(compile_launch(made, dtypes, target), target)
