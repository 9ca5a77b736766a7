"""The figures of machine code, on a few of the cases that `python -m benchmarks compile` takes."""

import pytest
import torch

from benchmarks import compile, compiled, inductor, operators
from tritonconv import launch
from tritonconv.cpu.forks import forked
from tritonconv.targets.machine_code import TARGETS

LAYER, f16 = compile.COMPARED[0], torch.float16


def test_layers_are_of_each_kind_that_the_networks_have():
    layers = compile.layers()
    kinds = {(g.R, g.S, g.stride[1], g.dilation != (1, 1)) for g in layers}
    assert len(layers) == compile.KINDS
    assert kinds > {(3, 3, 1, False), (3, 3, 2, False), (3, 3, 1, True), (1, 3, 1, True), (7, 7, 2, False)}
    assert {g.N for g in layers} == {compile.BATCH}


@pytest.mark.parametrize("target", TARGETS)
def test_cases_have_every_kernel_and_arithmetic(target):
    cases = list(compile.cases(target))
    launched = [compiled.launched(call, target) for (_, dtype, _), call in operators.calls().items() if dtype == f16]
    assert {made.kernel for listed in launched for made, _ in listed.values()} <= {case.launch.kernel for case in cases}
    assert {"conv_finish", "conv_winograd", "prelu_backward"} < {case.kernel for case in cases}
    names = {name for name, *_ in compile.ARITHMETICS}
    assert {case.arithmetic for case in cases} == (names if target.startswith("sm_") else names - {"TF32"})


def test_rows_are_compiled_side_by_side_in_order():
    made = launch.common.sum_splits_launch("sm_90", 4, 36864)
    cases = [
        compile.Case(target, "4 × 36864", "float32", "sum_splits", "1024", made, (torch.float32,) * 2)
        for target in ("sm_90", "gfx942")
    ]
    rows = list(forked(compile.Case.row, cases))
    assert [row["target"] for row in rows] == ["sm_90", "gfx942"]
    assert all(row["fits"] and row["registers"] > 0 and row["spills"] == 0 for row in rows)
    assert compile.figures(rows).count("\n") == 3


def test_what_does_not_compile_is_a_row_that_says_so():
    made = launch.common.sum_splits_launch("sm_90", 4, 36864)
    case = compile.Case("sm_90", "bad", "float32", "sum_splits", "", made, (torch.float32,))
    row = case.row()
    assert row["error"]
    assert row["error"] in compile.figures([row])


@pytest.mark.parametrize("geometry", (LAYER, compile.COMPARED[3]), ids=compile.describe)
def test_ours_has_fewer_other_instructions_than_inductors_template(geometry, tmp_path):
    """On sm_90, in float16: at most half as many for each product."""
    layer = compile.describe(geometry)
    cases = [case for case in compile.compared("sm_90", tmp_path) if case.layer == layer]
    chosen = [case for case in cases if case.kernel == "ours" or case.tile in ("128×128×64", "128×64×64")]
    rows = list(forked(compile.Case.row, chosen))
    ours, theirs = (compile.best([row for row in rows if row["kernel"] == name]) for name in ("ours", "Inductor"))
    assert ours["others"] <= 0.5 * theirs["others"]


def test_the_template_is_rendered_for_the_layer():
    source = inductor.source(LAYER, {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64})
    assert "KERNEL_H: tl.constexpr = 3" in source
    assert f"IN_H = {LAYER.H}" in source
    assert f"stride_xw = {LAYER.C}" in source
