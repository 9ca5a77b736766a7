"""That what is measured is checked: every candidate of every operator that can be tuned."""

import json
from dataclasses import asdict

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tritonconv import measuring
from tritonconv.configs.winograd import as_fprop
from tritonconv.geometry import AdaptiveGeometry, ConvGeometry, GroupGeometry, NormGeometry, PoolGeometry, RowGeometry

CONV = ConvGeometry(2, 3, 7, 8, 5, 3, 2, (1, 2), ((1, 1), (0, 0)))
SQUARE = ConvGeometry(2, 3, 7, 8, 5, 3, 3, (1, 1), ((1, 1), (0, 0)))
STRIDED = ConvGeometry(2, 3, 7, 8, 5, 4, 4, (2, 2), ((1, 1), (0, 0)))
DEPTHWISE = ConvGeometry(2, 4, 7, 8, 8, 3, 3, (2, 1), ((1, 1), (1, 1)), groups=4)
POOL = PoolGeometry(2, 5, 7, 8, 3, 2, (2, 2), (1, 0))
ROWS = RowGeometry(2, 6, 1, 40, 5, 1, 3, padding=((0, 0), (2, 0)))
NORMS = [NormGeometry(33, 5), NormGeometry(33, 5, 2, planar=True)]
GROUPS = [GroupGeometry(33, 6, 2, planar, 2) for planar in (False, True)]
GEOMETRIES = {
    **dict.fromkeys(("fprop", "dgrad", "wgrad"), [CONV]),
    **dict.fromkeys(("conv1d_fprop", "conv1d_dgrad", "conv1d_wgrad", "conv1d_winograd"), [ROWS]),
    "winograd": [SQUARE, STRIDED, as_fprop("dgrad", STRIDED)],
    "winograd_wgrad": [SQUARE, STRIDED],
    **dict.fromkeys(("depthwise_fprop", "depthwise_dgrad", "depthwise_wgrad"), [DEPTHWISE]),
    **dict.fromkeys(("max_pool", "max_pool_backward", "avg_pool_backward"), [POOL, AdaptiveGeometry(2, 5, 7, 8, 3, 3)]),
    "avg_pool": [POOL, AdaptiveGeometry(2, 5, 7, 8, 3, 3)],
    "global_avg_pool": [PoolGeometry(2, 5, 7, 8, 7, 8, (7, 8))],
    "max_unpool": [AdaptiveGeometry(2, 5, 7, 8, 3, 3)],
    "linear": [ConvGeometry(1, 70, 1, 1, 9, 1, 1)],
    **dict.fromkeys(("linear_fprop", "linear_dgrad", "linear_wgrad"), [ConvGeometry(5, 70, 1, 1, 9, 1, 1)]),
    **dict.fromkeys(("norm_moments", "norm_apply", "norm_backward_sums", "norm_backward"), NORMS + GROUPS),
    "prelu_backward": NORMS,
    "conv_finish": [NormGeometry(33, 5)],
}


def test_every_operator_that_can_be_tuned_is_tested():
    assert GEOMETRIES.keys() == measuring.OPERATORS.keys()


@pytest.mark.parametrize("op", GEOMETRIES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_each_candidate_is_checked(op, dtype):
    """Every one that is right passes, and none that has one element wrong."""
    for geometry in GEOMETRIES[op]:
        key = {"op": op, "dtype": str(dtype).removeprefix("torch."), "target": "cpu", **asdict(geometry)}
        problem = measuring.problem_of(json.loads(json.dumps(key)), torch.device("cpu"))
        problem.prepare(problem.candidates)
        for candidate in problem.candidates:
            result = problem.run(candidate)()
            assert problem.check(result) is None
            first, *_ = tree_leaves(result)
            first[(-1,) * first.dim()] += 9
            assert "its result is wrong by" in problem.check(result)
            first.fill_(float("nan"))
            assert "its result is wrong by nan" in problem.check(result)
