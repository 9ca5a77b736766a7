"""The kernels compile for GPUs that are not here, and their machine code is what it should be.

Compiles go through Triton's cache: the first run of this file takes minutes, later ones seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from tritonconv import configs, launch
from tritonconv.configs import TileConfig
from tritonconv.engines import Launch
from tritonconv.geometry import AdaptiveGeometry, ConvGeometry, GroupGeometry, NormGeometry, PoolGeometry, RowGeometry
from tritonconv.targets.machine_code import MATRIX, SPILL, TARGETS, MachineCode, compile_launch, matching

f16, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

GEOMETRIES = {
    "3x3": ConvGeometry(32, 256, 14, 14, 256, 3, 3, (1, 1), ((1, 1), (1, 1))),
    "first 3x3": ConvGeometry(32, 64, 56, 56, 64, 3, 3, (1, 1), ((1, 1), (1, 1))),
    "1x1": ConvGeometry(32, 256, 56, 56, 64, 1, 1),
    "stride 2": ConvGeometry(32, 128, 56, 56, 128, 3, 3, (2, 2), ((1, 1), (1, 1))),
    "odd channels": ConvGeometry(8, 17, 30, 30, 33, 3, 3, (1, 1), ((1, 1), (1, 1))),
}
OPS = ("fprop", "dgrad", "wgrad")
# What tl.dot becomes: mma, wgmma, tcgen05.mma, mfma.
INSTRUCTION = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC[A-Z]*MMA", "gfx942": "v_mfma"}
# A reciprocal, from which compilers make a division, and a load from global memory: all, and of a box or 16 bytes a
# thread into shared memory at once or, where AMD has no such instruction, into registers.
DIVISION = r"MUFU\.RCP|v_rcp"
LOAD = r"LDG(\.|STS)|UTMALDG|(buffer|global)_load"
WIDE_LOAD = r"LDGSTS.*\.128|UTMALDG|(buffer|global)_load_dwordx4"


@dataclass(frozen=True)
class Case:
    """One kernel of a convolution; the predicted config unless one is given."""

    op: str
    geometry: str
    dtype: torch.dtype
    precision: str = "ieee"
    config: TileConfig | None = None

    def launch(self, target: str) -> tuple[Launch, tuple[torch.dtype, ...]]:
        geometry, dtype = GEOMETRIES[self.geometry], self.dtype
        if self.op == "fprop":
            made = launch.conv.fprop_launch(target, geometry, dtype, self.precision, "relu", self.config)
            return made, (dtype,) * 4 + (None,) * 7
        if self.op == "dgrad":
            made = launch.conv.dgrad_launch(target, geometry, dtype, self.precision, None, self.config)
            return made, (dtype, dtype, None, dtype) + (None,) * 5
        made = launch.conv.wgrad_launch(target, geometry, dtype, self.precision, True, self.config)
        return made, (dtype, dtype, f64 if dtype is f64 else f32)  # partial sums

    def __str__(self) -> str:
        text = f"{self.op}-{self.geometry}-{str(self.dtype)[6:]}-{self.precision}".replace(" ", "_")
        return f"{text}-{self.config.BM}x{self.config.BN}x{self.config.BK}" if self.config else text


def compiled(case: Case, target: str) -> MachineCode:
    made, dtypes = case.launch(target)
    return compile_launch(made, dtypes, target)


def runs_on(target: str, case: Case) -> bool:
    """The library asks for TF32 on NVIDIA's GPUs only."""
    return case.precision != "tf32" or target.startswith("sm_")


HALVES = [Case(op, geometry, f16) for op in OPS for geometry in GEOMETRIES]
BFLOATS = [Case(op, "first 3x3", bf16) for op in OPS]
FLOATS = [Case(op, "3x3", f32) for op in OPS]
TF32 = [Case(op, geometry, f32, "tf32") for op in OPS for geometry in ("first 3x3", "stride 2")]
# Without dgrad, which divides in its loop by how many taps the class has.
STRIDED = [Case(op, "stride 2", f16) for op in ("fprop", "wgrad")]
DOUBLES = [Case(op, "3x3", f64) for op in OPS]
PREDICTED = [
    (target, case) for target in TARGETS for case in HALVES + BFLOATS + FLOATS + TF32 + DOUBLES if runs_on(target, case)
]
# The rest of three search spaces, each of another kernel and arithmetic.
SPACES = {
    ("fprop", f16, "ieee"): ("sm_90", "sm_100"),
    ("dgrad", f32, "tf32"): ("sm_80", "sm_90"),
    ("wgrad", f32, "ieee"): ("sm_90", "gfx942"),
}
ALTERNATIVES = [
    (target, Case(op, "3x3", dtype, precision, config))
    for (op, dtype, precision), targets in SPACES.items()
    for target in targets
    for config in configs.space(op, GEOMETRIES["3x3"], dtype, target)[1:]
]

# Of kernels with matrix products: all that halves become; and float, with matrix instructions and without.
PRODUCTS = *((target, f16) for target in TARGETS), ("sm_90", f32), ("gfx942", f32)
# Of kernels without, in which little depends on both.
ONE_DTYPE_EACH = tuple(zip(TARGETS, (f32, f16, f32, f16), strict=True))


def check(code: MachineCode, target: str) -> None:
    assert matching(code.code, SPILL) == 0
    assert code.shared_bytes <= TARGETS[target].shared_program
    assert code.occupancy >= 1


@pytest.mark.parametrize(("target", "case"), PREDICTED + ALTERNATIVES, ids=str)
def test_convolutions_fit_the_target_and_use_its_matrix_instructions(target, case):
    code = compiled(case, target)
    check(code, target)
    # NVIDIA's tensor cores have no true float32: it is computed with FFMA.
    plain = case.dtype is f32 and case.precision == "ieee" and target != "gfx942"
    assert (matching(code.code, MATRIX) == 0) == plain
    assert not plain or matching(code.loop, "FFMA")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_a_wide_layers_loop_has_the_targets_own_matrix_instruction_and_wide_loads(op, target):
    loop = compiled(Case(op, "3x3", f16), target).loop
    assert matching(loop, INSTRUCTION[target])
    assert matching(loop, WIDE_LOAD) == matching(loop, LOAD) > 0


@pytest.mark.parametrize("target", ("sm_90", "sm_100"))
@pytest.mark.parametrize("op", ("fprop", "dgrad"))
@pytest.mark.parametrize("geometry", ("first 3x3", "1x1", "stride 2"))
def test_operands_come_as_boxes(geometry, op, target):
    space = configs.space(op, GEOMETRIES[geometry], f16, target)
    boxed = next(config for config in space if config.boxed and config.SPLIT == 1)
    made, dtypes = Case(op, geometry, f16, config=boxed).launch(target)
    boxes = 1 if (op, geometry) == ("dgrad", "stride 2") else 2
    assert len(made.boxes) == boxes
    code = compile_launch(made, dtypes, target)
    copies, others = (matching(code.code, pattern) for pattern in ("UTMALDG", "LDGSTS"))
    assert copies
    assert (others == 0) == (boxes == 2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", [Case(op, "3x3", f16) for op in OPS] + STRIDED, ids=str)
def test_no_loop_divides(case, target):
    code = compiled(case, target)
    assert matching(code.code, DIVISION)  # before the loop
    assert matching(code.loop, DIVISION) == 0


@pytest.mark.parametrize(("target", "dtype"), ONE_DTYPE_EACH, ids=str)
def test_other_kernels_fit_the_target(dtype, target):
    geometry = PoolGeometry(32, 64, 112, 112, 3, 3, (2, 2), (1, 1), (1, 1), False)
    adaptive = AdaptiveGeometry(32, 64, 56, 56, 5, 7)
    image = PoolGeometry(32, 2048, 7, 7, 7, 7, (7, 7))
    indices = torch.int64
    for made, dtypes in (
        (launch.pool.max_pool_launch(target, geometry, dtype), (dtype, dtype, indices)),
        (launch.pool.max_pool_launch(target, geometry, dtype), (dtype, dtype, None)),
        (launch.pool.max_pool_backward_launch(target, geometry, dtype), (dtype, indices, dtype)),
        (launch.pool.max_pool_backward_launch(target, adaptive, dtype), (dtype, indices, dtype)),
        (launch.pool.max_unpool_launch(target, adaptive, dtype), (dtype, indices, dtype)),
        (launch.pool.avg_pool_launch(target, geometry, dtype, "inside"), (dtype, dtype)),
        (launch.pool.avg_pool_launch(target, adaptive, dtype, "inside"), (dtype, dtype)),
        (launch.pool.avg_pool_launch(target, geometry, dtype, 9, 2), (dtype, dtype)),
        (launch.pool.avg_pool_backward_launch(target, geometry, dtype, "padded"), (dtype, dtype)),
        (launch.pool.global_avg_pool_launch(target, image, dtype), (dtype, dtype)),
        (launch.common.sum_splits_launch(target, 4, 36864), (f32, dtype)),
        (launch.packing.pack_launch(target, (1, 9, 64, 256), (0, 64, 1, 576), 128), (dtype, dtype)),
        (
            launch.split.finish_launch(target, NormGeometry(49, 512), dtype, 16, "relu", 1e-5),
            (f32, dtype, dtype, *(f32,) * 4, None, dtype, f32),
        ),
    ):
        check(compile_launch(made, dtypes, target), target)


@pytest.mark.parametrize(("target", "dtype"), ONE_DTYPE_EACH, ids=str)
@pytest.mark.parametrize("geometry", (NormGeometry(32 * 56 * 56, 256), NormGeometry(1000, 256, 32, True)), ids=str)
def test_batch_norm_fits_the_target(geometry, dtype, target):
    applied = target, geometry, dtype, 1e-5, "relu"
    for made, dtypes in (
        (launch.norm.moments_launch(target, geometry, dtype), (dtype, f32)),
        (launch.norm.finalize_launch(target, geometry, 128), (f32,) * 3),
        (launch.norm.apply_launch(*applied), (dtype, *(f32,) * 4, None, dtype, dtype)),
        (launch.norm.prelu_backward_launch(target, geometry, dtype, "prelu"), (*(dtype,) * 4, f32)),
        (launch.norm.backward_sums_launch(*applied), (dtype,) * 3 + (f32,) * 4 + (None, f32)),
        (launch.norm.backward_launch(*applied), (dtype, None, dtype, *(f32,) * 4, dtype, f32, dtype, dtype)),
    ):
        check(compile_launch(made, dtypes, target), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("planar", (False, True))
def test_group_norm_fits_the_target(planar, target):
    geometry = GroupGeometry(64 * 64, 320, 2, planar, 32)
    applied = target, geometry, f16, 1e-5, "silu"
    for made, dtypes in (
        (launch.norm.moments_launch(target, geometry, f16), (f16, f32)),
        (launch.group_norm.finalize_launch(target, geometry, 128), (f32,) * 3),
        (launch.norm.apply_launch(*applied), (f16, *(f32,) * 4, None, None, f16)),
        (launch.norm.backward_sums_launch(*applied), (f16, None, f16, *(f32,) * 4, None, f32)),
        (launch.group_norm.means_launch(target, geometry), (f32,) * 3),
        (launch.norm.backward_launch(*applied), (f16, None, f16, *(f32,) * 4, None, f32, f16, None)),
    ):
        check(compile_launch(made, dtypes, target), target)


@pytest.mark.parametrize(("target", "dtype"), PRODUCTS, ids=str)
def test_a_convolution_that_pools_fits_the_target_and_has_the_same_loop(dtype, target):
    geometry, window, taps = GEOMETRIES["3x3"], (2, 2), torch.uint8
    problem = geometry.firsts(window), dtype, "ieee", "relu"
    made = launch.conv_pool.fprop_launch(target, problem[0], window, *problem[1:])
    extents = {name: made.constexprs[name] for name in ("BM", "BN", "BK", "GROUP_M")}
    config = TileConfig(**extents, num_warps=made.num_warps, num_stages=made.num_stages)
    plain = compile_launch(launch.conv.fprop_launch(target, *problem, config), (dtype,) * 4 + (None,) * 7, target)
    code = compile_launch(made, (*(dtype,) * 4, *(None,) * 4, taps), target)
    check(code, target)
    for instructions in (MATRIX, LOAD):
        assert matching(code.loop, instructions) == matching(plain.loop, instructions)
    products, others = (matching(c.loop, "FFMA") + matching(c.loop, "FFMA2") for c in (code, plain))  # FFMA2 is two
    assert products == others
    way_back = launch.conv_pool.spread_launch(target, launch.conv_pool.pooling(geometry, window), dtype)
    check(compile_launch(way_back, (dtype, taps, dtype), target), target)


@pytest.mark.parametrize(("target", "dtype"), PRODUCTS, ids=str)
def test_an_epilogue_leaves_the_convolutions_loop_as_it_is(dtype, target):
    problem = target, GEOMETRIES["3x3"], dtype, "ieee"
    plain = compile_launch(launch.conv.fprop_launch(*problem, None), (dtype,) * 2 + (None, dtype) + (None,) * 7, target)
    for activation, epilogue in (
        ("silu", (*(f32,) * 4, None, dtype, None)),
        ("prelu", (*(f32,) * 4, dtype, dtype, None)),
        (None, (*(None,) * 6, f32)),
    ):
        made = launch.conv.fprop_launch(*problem, activation, eps=1e-5)
        code = compile_launch(made, (dtype,) * 4 + epilogue, target)
        # Statistics take registers when the loop is over: a spill there costs nothing that counts.
        assert matching(code.code, SPILL) <= 4
        assert code.occupancy >= 1
        for instructions in (MATRIX, "FFMA", LOAD, SPILL):
            assert matching(code.loop, instructions) == matching(plain.loop, instructions)


@pytest.mark.parametrize(("target", "dtype"), ONE_DTYPE_EACH, ids=str)
def test_depthwise_kernels_fit_the_target_and_read_wide(dtype, target):
    geometry = ConvGeometry(32, 144, 56, 56, 144, 3, 3, (1, 1), ((1, 1), (1, 1)), (1, 1), 144)
    for made, dtypes in (
        (launch.depthwise.fprop_launch(target, geometry, dtype, "relu"), (dtype,) * 4 + (None,) * 6),
        (launch.depthwise.dgrad_launch(target, geometry, dtype), (dtype,) * 3),
        (launch.depthwise.wgrad_launch(target, geometry, dtype), (dtype, dtype, f32)),
    ):
        code = compile_launch(made, dtypes, target)
        check(code, target)
        assert matching(code.code, MATRIX) == 0
        assert matching(code.code, r"LDG.*\.(64|128)|(buffer|global)_load_(dwordx[24]|b64|b128)")


@pytest.mark.parametrize(("target", "dtype"), PRODUCTS, ids=str)
def test_winograds_algorithm_fits_the_target(dtype, target):
    """Where the library does not choose it yet."""
    geometry = GEOMETRIES["first 3x3"]
    strided = replace(geometry, R=4, S=4, stride=(2, 2))
    transposed = configs.winograd.as_fprop("dgrad", strided)
    tiles = [(geometry, config) for config in configs.space("winograd", geometry, dtype, target)]
    phased = (strided, transposed) if dtype is f16 else ()  # compiling takes long
    tiles += [(problem, configs.space("winograd", problem, dtype, target)[1]) for problem in phased]
    for problem, config in tiles:
        made = launch.winograd.fprop_launch(target, problem, dtype, "ieee", "relu", 132, config)
        code = compile_launch(made, (dtype, f32, dtype, dtype, *(None,) * 8, f32), target)
        # ptxas spills a little around the loop to fit another block beside this one.
        assert matching(code.code, SPILL) <= 8
        assert matching(code.loop, SPILL) == 0
        assert code.shared_bytes <= TARGETS[target].shared_program
        assert code.occupancy >= 1
        made = launch.winograd.filter_launch(target, "dgrad", problem, (576, 9, 3, 1), config.OUT, config.BN)
        check(compile_launch(made, (dtype, f32), target), target)
    wgrad = launch.winograd_wgrad
    for problem in (geometry, *phased[:1]):
        for made, dtypes in (
            *((wgrad.gather_launch(target, problem, dtype, outputs, 0), (dtype, f32)) for outputs in (True, False)),
            (wgrad.correlate_launch(target, problem, dtype, "ieee", False), (f32, f32, f32)),
            (wgrad.taps_launch(target, problem, dtype, True), (f32, dtype)),
        ):
            check(compile_launch(made, dtypes, target), target)


@pytest.mark.parametrize(("target", "dtype"), PRODUCTS, ids=str)
@pytest.mark.parametrize("stride", (1, 4))
def test_1d_convolution_fits_the_target(stride, dtype, target):
    problem = target, RowGeometry(32, 512, 1, 1024, 512, 1, 3, (1, stride), dilation=(1, 2)), dtype, "ieee"
    for made, dtypes in (
        (launch.conv1d.fprop_launch(*problem, "relu"), (dtype,) * 4 + (None,) * 7),
        (launch.conv1d.dgrad_launch(*problem, None), (dtype, dtype, None, dtype) + (None,) * 7),
        (launch.conv1d.wgrad_launch(*problem, False), (dtype,) * 3),
    ):
        code = compile_launch(made, dtypes, target)
        check(code, target)
        assert (matching(code.loop, MATRIX) == 0) == (dtype is f32 and target != "gfx942")
    phases = launch.conv1d.phases_launch(target, 32 * 512, 1024, 3, -1, 1, 4)
    check(compile_launch(phases, (dtype, dtype), target), target)


@pytest.mark.parametrize(("target", "block"), (("sm_90", 1 << 13), ("gfx942", 1 << 15)))
def test_what_does_not_fit_shows(target, block):
    large = {"TOGETHER": 1, "BLOCK": block}
    reduction = replace(launch.common.sum_splits_launch(target, 4, 1 << 20), constexprs=large, num_warps=1)
    assert matching(compile_launch(reduction, (f32, f32), target).code, SPILL)
    large = compiled(Case("fprop", "3x3", f16, config=TileConfig(128, 128, 256, num_warps=8, num_stages=3)), target)
    assert large.shared_bytes > TARGETS[target].shared_program
    assert large.occupancy == 0
