"""Where Winograd's algorithm is chosen, and where not."""

import itertools
from dataclasses import replace

import pytest
import torch
from cases import normal

import autotune
from autotune import store
from tritonconv import configs, functional, launch
from tritonconv.geometry import ConvGeometry

LAYER = ConvGeometry(1, 64, 56, 56, 64, 3, 3, padding=((1, 1), (1, 1)))
FIVE = replace(LAYER, R=5, S=5, padding=((2, 2), (2, 2)))
FOUR, STRIDED_FIVE = replace(LAYER, R=4, S=4, stride=(2, 2)), replace(FIVE, stride=(2, 2))
f32 = torch.float32
OTHERS = (
    (FIVE, f32, "cpu", "wgrad"),
    (replace(FIVE, S=3), f32, "cpu", "fprop"),
    (replace(LAYER, stride=(2, 2)), f32, "cpu", "fprop"),
    (replace(FOUR, stride=(1, 1)), f32, "cpu", "fprop"),
    (replace(FOUR, stride=(2, 1)), f32, "cpu", "dgrad"),
    (replace(FOUR, dilation=(2, 2)), f32, "cpu", "fprop"),
    (replace(FOUR, H=4, W=4, C=512, K=512), f32, "cpu", "dgrad"),
    (replace(LAYER, stride=(1, 2)), f32, "cpu", "wgrad"),
    (replace(LAYER, H=1, W=1), f32, "cpu", "wgrad"),
    (replace(LAYER, padding=((40, 40), (40, 40)), dilation=(40, 40)), f32, "cpu", "fprop"),
    (replace(LAYER, groups=2), f32, "cpu", "fprop"),
    (replace(LAYER, S=1), f32, "cpu", "fprop"),
    (replace(LAYER, C=3), f32, "cpu", "fprop"),
    (replace(LAYER, padding=((3, 3), (1, 1))), f32, "cpu", "dgrad"),
    (LAYER, torch.float64, "cpu", "fprop"),
    (LAYER, f32, "sm_90", "fprop"),
    (LAYER, torch.float16, "sm_90", "fprop"),
    (LAYER, f32, "interpreter", "fprop"),
)


def test_a_layer_for_which_it_is_chosen():
    for op in ("fprop", "dgrad", "wgrad"):
        for dtype in (f32, torch.float16, torch.bfloat16):
            for geometry in (LAYER, replace(LAYER, padding=((2, 2), (2, 2)), dilation=(2, 2))):
                assert configs.algorithm(op, geometry, dtype, "cpu") == "winograd"
    phased = itertools.product(("fprop", "dgrad", "wgrad"), (FOUR, STRIDED_FIVE))
    for op, geometry in (("fprop", FIVE), ("dgrad", FIVE), *phased):
        assert configs.algorithm(op, geometry, f32, "cpu") == "winograd"


def test_small_images_of_many_channels_take_the_smaller_filters():
    """36 / 9 of the weight is more to read than 16 / 9; where there is enough to compute with it, it saves products."""
    for size, OUT in ((7, 2), (28, 4)):
        geometry = replace(LAYER, C=512, K=512, H=size, W=size)
        assert configs.space("winograd", geometry, f32, "cpu")[0].OUT == OUT


@pytest.mark.parametrize(("geometry", "dtype", "target", "op"), OTHERS, ids=str)
def test_layers_for_which_it_is_not(geometry, dtype, target, op):
    assert configs.algorithm(op, geometry, dtype, target) == "gemm"


@pytest.mark.parametrize("op", ("fprop", "dgrad", "wgrad"))
def test_on_a_gpu_a_measurement_chooses_it(op, tmp_path):
    problem = LAYER, torch.float16, "sm_90"
    assert list(configs.algorithms(op, *problem)) == ["gemm", "winograd"]
    with store.at(tmp_path):
        launch.common.forget()
        with autotune.asked() as keys:
            assert launch.common.algorithm_of(op, *problem) == "gemm"
        autotune.record(keys[0], {"algorithm": "winograd"}, {"how": "measured"})
        launch.common.forget()
        assert launch.common.algorithm_of(op, *problem) == "winograd"
    launch.common.forget()


def test_a_chosen_layer_is_computed_by_it():
    x, weight = (normal(shape, f32) for shape in ((1, 64, 12, 12), (64, 64, 3, 3)))
    geometry = replace(LAYER, H=12, W=12)
    assert configs.algorithm("fprop", geometry, f32, "cpu") == "winograd"
    want = launch.winograd.bind_fprop(x, weight, None, geometry)(x, None)
    assert torch.equal(functional.conv2d(x, weight, padding=1), want.contiguous())
