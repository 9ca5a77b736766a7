"""`summary` and `plan` against worked examples and torch."""

import json
import pkgutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonconv
from benchmarks.zoo.sequences import CausalConv1d
from tritonconv.configs import winograd
from tritonconv.geometry import ConvGeometry
from tritonconv.launch.common import config_of
from tritonconv.survey.survey import survey


def lenet_like():
    return nn.Sequential(
        nn.Conv2d(3, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1600, 10),
    )  # fmt: skip


class Residual(nn.Module):
    """Branches that see 1, 5 and, dilated, 9 pixels, and meet."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.wide = nn.Conv2d(4, 4, 3, padding=4, dilation=4)

    def forward(self, x):
        y = self.second(F.relu(self.norm(self.first(x)))) + x
        return F.max_pool2d(torch.cat([F.relu(y), self.wide(x)], 1), 2)


def fields(model, sample):
    return {layer.name: layer.field and tuple((int(f.size), float(f.jump)) for f in layer.field)
            for layer in tritonconv.summary(model, sample)}  # fmt: skip


def test_the_worked_example():
    layers = tritonconv.summary(lenet_like(), torch.randn(1, 3, 32, 32))
    assert [layer.output[1:] for layer in layers] == [
        (32, 28, 28), (32, 28, 28), (32, 14, 14), (64, 10, 10), (64, 10, 10), (64, 5, 5), (1600,), (10,),
    ]  # fmt: skip
    first, *_ = layers
    assert first.parameters == 2432
    assert first.flops == ConvGeometry(1, 3, 32, 32, 32, 5, 5).flops
    assert first.bytes == ConvGeometry(1, 3, 32, 32, 32, 5, 5).bytes(4) + 4 * 32  # and the bias
    assert [int(layer.field[0].size) for layer in layers] == [5, 5, 6, 14, 14, 16, 32, 32]
    assert [int(layer.field[1].jump) for layer in list(layers)[:6]] == [1, 1, 2, 2, 2, 4]


@pytest.mark.parametrize(("stride", "size"), [(1, 5), (2, 3)])
def test_strides(stride, size):
    (layer,) = tritonconv.summary(nn.Conv2d(1, 1, 3, stride), torch.randn(1, 1, 7, 7))
    assert layer.output == (1, 1, size, size)
    assert [(int(axis.size), int(axis.jump)) for axis in layer.field] == [(3, stride)] * 2


def test_where_branches_meet_the_widest_field_counts():
    got = fields(Residual(), torch.randn(1, 4, 12, 12))
    assert got["second"] == got["add"] == got["relu_1"] == ((5, 1), (5, 1))
    assert got["wide"] == got["cat"] == ((9, 1), (9, 1))
    assert got["max_pool2d"] == ((10, 2), (10, 2))


@pytest.mark.parametrize(
    ("module", "field"),
    [
        (nn.Conv2d(2, 2, (3, 1), (2, 1), dilation=(2, 1)), ((5, 2), (1, 1))),
        (nn.AvgPool2d(3, 2), ((3, 2), (3, 2))),
        (nn.AdaptiveAvgPool2d(1), ((8, 8), (8, 8))),
        (nn.Upsample(scale_factor=2), ((1, 0.5), (1, 0.5))),
        (nn.Upsample(scale_factor=2, mode="bilinear"), ((2, 0.5), (2, 0.5))),
        (nn.ConvTranspose2d(2, 2, 4, 2), ((2, 0.5), (2, 0.5))),
        (nn.ConvTranspose2d(2, 2, 2, 2), ((1, 0.5), (1, 0.5))),
        (nn.ZeroPad2d(3), ((1, 1), (1, 1))),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), ((3, 1), (3, 1))),
    ],
)
def test_fields_of_single_layers(module, field):
    assert fields(module, torch.randn(1, 2, 8, 8)) == {"": field}


def test_a_field_is_what_the_output_depends_on():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, 2), nn.ReLU(), nn.AvgPool2d(2, 1), nn.Conv2d(1, 1, 3, dilation=2)).double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1)
    x = torch.ones(1, 1, 33, 33, dtype=torch.float64, requires_grad=True)
    y = model(x)
    (gradient,) = torch.autograd.grad(y[0, 0, 2, 3], x)
    rows, columns = (gradient[0, 0] != 0).nonzero().unbind(1)
    *_, last = tritonconv.summary(model, x.detach())
    assert [int(axis.size) for axis in last.field] == [int(i.max() - i.min()) + 1 for i in (rows, columns)]
    (moved,) = torch.autograd.grad(model(x)[0, 0, 3, 3], x)
    assert last.field[0].jump == int((moved[0, 0] != 0).nonzero()[0, 0] - rows[0])


def test_one_dimension():
    got = fields(nn.Sequential(nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3, dilation=2)), torch.randn(1, 2, 16))
    assert got == {"0": ((1, 1), (3, 1)), "1": ((1, 1), (7, 1))}


def test_three_dimensions_keep_height_and_width():
    model = nn.Sequential(nn.Conv3d(2, 2, (5, 3, 1)), nn.MaxPool3d(2), nn.ConvTranspose3d(2, 2, 2, 2))
    got = fields(model, torch.randn(1, 2, 8, 8, 8))
    assert got == {"0": ((3, 1), (1, 1)), "1": ((4, 2), (2, 2)), "2": ((4, 1), (2, 1))}


def test_a_convolution_of_means():
    model, x = nn.Sequential(nn.Conv2d(64, 32, 1, bias=False), nn.AvgPool2d(2)), torch.randn(2, 64, 16, 8)
    (step,) = tritonconv.plan(model, x)
    assert (step.site.pattern, step.output) == ("conv2d+avg_pool2d", (2, 32, 8, 4))
    assert (step.geometry.H, step.geometry.W) == (8, 4)
    assert step.flops == 2 * 64 * 32 * (2 * 8 * 4)
    assert step.bytes == 4 * (x.numel() + 2 * x.numel() // 4 + 64 * 32 + 2 * 32 * 8 * 4)


def test_an_empty_batch():
    for table in (tritonconv.summary, tritonconv.plan):
        shown = table(nn.Sequential(nn.Conv2d(2, 2, 3), nn.AvgPool2d(2)), torch.randn(0, 2, 4, 4))
        assert [row.intensity for row in shown] == [0, 0] and str(shown) and shown.to_json()


def test_a_module_that_is_called_twice_is_a_part_of_two_sites():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(2, 2, 1), nn.ReLU()

        def forward(self, x):
            x = self.act(self.conv(x))
            return self.act(self.conv(x) + x)

    model, x = nn.Sequential(*[Twice()] * 2), torch.randn(1, 2, 8, 8)
    sites = ["conv2d+relu", "conv2d+add+relu"] * 2
    assert [step.site.pattern for step in tritonconv.plan(model, x)] == sites
    assert [layer.site.pattern for layer in tritonconv.summary(model, x) if layer.kind == "Conv2d"] == sites


def test_a_dtype_without_kernels():
    x = torch.randn(1, 2, 8, 8, dtype=torch.complex64)
    (step,) = tritonconv.plan(nn.Conv2d(2, 2, 3, dtype=torch.complex64), x)
    assert (step.algorithm, step.reason) == (None, "dtype torch.complex64")


def test_what_runs_a_layer():
    layers, _ = survey(Residual(), torch.randn(1, 4, 8, 8), "summary")
    sites = {layer.name: layer.site and layer.site.fqn for layer in layers}
    assert sites["first"] == sites["norm"] == sites["relu"] == "first"
    assert sites["second"] == sites["add"] == "second"
    assert sites["cat"] is None
    assert sites["max_pool2d"] == "max_pool2d"


@pytest.mark.parametrize("command", ["summary", "plan"])
def test_nothing_changes_and_both_print_tables_and_json(command):
    model = tritonconv.patch(Residual().train(), exclude="wide")
    before, random = tritonconv.report(model), torch.get_rng_state()
    running = model.norm.running_mean.clone()
    result = getattr(tritonconv, command)(model, torch.randn(1, 4, 8, 8, generator=torch.Generator()))
    assert tritonconv.report(model) == before
    assert model.training
    assert model.norm.training
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(running, model.norm.running_mean)
    assert "Residual" in str(result)
    assert "conv2d+batch_norm+relu" in result.to_json()
    assert json.loads(result.to_json())["model"] == "Residual"


def test_a_plan_says_kernels_tiles_and_why_not():
    model = nn.Sequential(Residual(), nn.Conv2d(8, 8, 3, padding_mode="circular"))
    plan = tritonconv.plan(model, torch.randn(1, 4, 8, 8))
    steps = {step.site.fqn: step for step in plan}
    first = steps["0.first"]
    assert first.geometry == ConvGeometry(1, 4, 8, 8, 4, 3, 3, padding=((1, 1), (1, 1)))
    assert (first.algorithm, first.flops, first.reason) == ("implicit GEMM", first.geometry.flops, "")
    assert first.config.BM * first.config.BN > 0
    assert steps["0.max_pool2d"].bound == "memory"
    assert steps["1"].algorithm is None
    assert steps["1"].reason == "padding_mode is 'circular'; only 'zeros' is supported"
    residual = steps["0.second"]
    assert residual.bytes == 4 * (3 * 4 * 64 + 4 * 4 * 9 + 4)  # input, residual, output, weight, bias
    assert not plan.unreached


@pytest.mark.parametrize(
    ("module", "algorithm"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), "direct"),
        (nn.Conv2d(4, 6, 3), "implicit GEMM"),
        (nn.ConvTranspose2d(4, 6, 2, 2), "implicit GEMM"),
        (nn.AvgPool2d(2), "direct"),
        (nn.AdaptiveAvgPool2d(1), "direct"),
    ],
)
def test_a_plan_knows_the_algorithm(module, algorithm):
    (step,) = tritonconv.plan(module, torch.randn(1, 4, 8, 8))
    assert (step.algorithm, step.reason) == (algorithm, "")


def test_a_plan_asks_for_winograds_tile_where_it_is_chosen():
    (step,) = tritonconv.plan(nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 56, 56))
    problem = winograd.as_fprop("fprop", step.geometry)
    assert step.algorithm == "Winograd"
    assert step.config == config_of("winograd", problem, torch.float32, "cpu")


def test_a_plan_has_the_call_in_a_convolution_that_pads_itself():
    plan = tritonconv.plan(nn.Sequential(CausalConv1d(3, 4, 3)), torch.randn(1, 3, 9))
    (step,) = plan.steps
    assert step.site.pattern == "pad+conv1d" and step.output == (1, 4, 9) and not plan.unreached


def test_a_plan_says_what_the_sample_does_not_reach():
    model = nn.Sequential(nn.Conv2d(2, 2, 1))
    model.spare = nn.Module()
    model.spare.conv = nn.Conv2d(2, 2, 1)
    model.forward = lambda x: model[0](x)
    plan = tritonconv.plan(model, torch.randn(1, 2, 4, 4))
    assert [site.fqn for site in plan.unreached] == ["spare.conv"]


def test_samples_are_tensors_tuples_or_dicts():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    x = torch.ones(2, 3)
    for sample in ((x, x), {"x": x, "y": x}):
        (layer,) = tritonconv.summary(Two(), sample)
        assert (layer.kind, layer.output) == ("Two", (2, 3))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.ones(1, 5, 8, 8), r"Conv2d cannot run the sample, \[1, 5, 8, 8\] of torch.float32: .*expected input"),
        (torch.ones(1, 2, 8, 8, device="meta"), "the sample is on meta, Conv2d on cpu; both must be on one"),
        (3, "the sample, of type int, holds no tensor: it must be the model's input"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused_in_one_sentence(sample, message):
    with pytest.raises(ValueError, match=message):
        tritonconv.summary(nn.Conv2d(2, 2, 3), sample)


def test_no_module_hides_a_public_name():
    names = {module.name for module in pkgutil.iter_modules(tritonconv.__path__)}
    assert not names & set(tritonconv._PUBLIC)
