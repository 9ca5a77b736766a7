"""`tritonconv.tune`: what it finds to tune, what it finds, and that patched models then do it."""

import copy
import io
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import integers
from rich.console import Console
from torch import nn

import autotune
import tritonconv
from autotune import store
from tritonconv import choice, configs, engines, functional, launch, measuring, tuning
from tritonconv.blocks import repeat
from tritonconv.geometry import ConvGeometry
from tritonconv.targets import compiling

SIZE = (1, 2, 6, 6)


@pytest.fixture(autouse=True)
def directory(tmp_path):
    """An empty store; kernels stay where they are kept."""
    tuning.forget()
    with store.at(tmp_path / "tuned"):
        yield
    tuning.forget()


class Network(nn.Module):
    """Two convolutions alike, one with ReLU that is not, and both kinds of pooling calls."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
        self.pool = nn.MaxPool2d(2, 1)  # whose windows overlap: no convolution takes it in
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = self.pool(F.relu(self.first(x)))
        return F.max_pool2d(self.drop(self.norm(-self.body(x))), 3)  # a norm by itself


def network() -> Network:
    torch.manual_seed(0)
    return tritonconv.patch(Network().eval())


def quietly(model, sample, **options):
    return tritonconv.tune(model, sample, console=Console(file=io.StringIO()), **options)


def ops(keys) -> list[str]:
    return sorted(key["op"] for key in keys)


def test_problems_are_those_of_a_forward_each_once():
    keys = tuning.problems(network(), torch.randn(SIZE))
    assert ops(keys) == ["conv2d"] * 2 + ["fprop"] * 2 + ["max_pool"] * 2 + ["max_pool2d"] * 2
    assert not any(key["backward"] for key in keys if "arguments" in key)


def test_training_adds_the_backward_and_leaves_the_model_as_it_was():
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    keys = tuning.problems(model, torch.randn(SIZE, generator=torch.Generator().manual_seed(0)))
    assert {"dgrad", "wgrad", "max_pool_backward"} <= set(ops(keys))
    assert sum(key.get("backward", False) for key in keys) == 4
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_inputs_may_be_a_tuple_or_a_dict():
    model, x = network(), torch.randn(SIZE)
    assert tuning.problems(model, (x,)) == tuning.problems(model, {"x": x}) == tuning.problems(model, x)


def test_a_tuned_model_computes_the_same_and_is_not_tuned_again():
    model, x = network().train(), torch.randn(SIZE)
    tuned = quietly(model, x)
    assert tuned.count("measured") == len(tuned.outcomes)
    again = quietly(model, x)
    assert again.count("stored") == len(again.outcomes) > 0  # fewer, if calls are left to torch
    for outcome in tuned.outcomes:
        assert autotune.lookup(outcome.key) == outcome.config

    plain = tritonconv.unpatch(copy.deepcopy(model))
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


def test_on_every_engine(device):
    model = tritonconv.patch(nn.Sequential(nn.Conv2d(1, 2, 1)).eval())
    tuned = quietly(model, torch.randn(1, 1, 2, 2, device=device))
    assert tuned.count("measured") == 2
    (fprop,) = (o.key for o in tuned.outcomes if o.key["op"] == "fprop")
    assert fprop["target"] == engines.engine_for(device).target(device)


def test_a_model_that_is_not_patched_and_a_bad_budget_are_refused():
    with pytest.raises(ValueError, match="this Linear runs no kernels: call tritonconv.patch on it first"):
        tritonconv.tune(nn.Linear(1, 1), torch.randn(1, 1))
    with pytest.raises(ValueError, match="budget must be a positive number of seconds, or None for no limit; got 0"):
        tritonconv.tune(network(), torch.randn(SIZE), budget=0)


def test_a_key_of_another_target_is_refused():
    key = tuning.problems(network(), torch.randn(SIZE))[0] | {"target": "sm_90"}
    with pytest.raises(ValueError, match="cannot measure for 'sm_90' on cpu"):
        measuring.problem_of(key, torch.device("cpu"))


def test_an_unknown_target_is_refused():
    geometry = ConvGeometry(1, 2, 3, 3, 4, 1, 1)
    with pytest.raises(ValueError, match="target must be .*; got 'sm90'"):
        configs.space("fprop", geometry, torch.float32, "sm90")


class Unpooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        return self.unpool(*self.pool(x))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 50, 1), nn.Flatten(), nn.Linear(200, 100))


NORMS = {"norm_moments", "norm_apply", "norm_backward_sums", "norm_backward"}
# Sites, their inputs, and operators that have several tiles there in training, of a fully connected layer in inference.
SITES = {
    "1-D": (lambda: nn.Conv1d(64, 64, 5), (1, 64, 300), {"conv1d_fprop", "conv1d_dgrad", "conv1d_wgrad"}),
    "1-D Winograd": (lambda: nn.Conv1d(128, 128, 3), (1, 128, 600), {"conv1d_winograd"}),
    "norm": (lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), (2, 8, 60, 60), NORMS),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 1)), (2, 8, 60, 60), NORMS),
    "PReLU": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.PReLU(8)), (2, 3, 60, 60), {"fprop", "prelu_backward"}),
    "unpooling": (Unpooling, (2, 8, 60, 60), {"max_pool", "max_unpool"}),
    "Winograd": (lambda: nn.Conv2d(64, 64, 3, padding=1), (1, 64, 28, 28), {"winograd", "winograd_wgrad"}),
    "transposed Winograd": (lambda: nn.ConvTranspose2d(64, 64, 4, 2, 1), (1, 64, 28, 28), {"winograd"}),
    "fully connected": (perceptron, (1, 2, 2, 2), {"linear"}),
}


@pytest.mark.parametrize("site", SITES)
def test_a_patched_model_runs_the_tile_that_is_stored(site):
    make, size, wanted = SITES[site]
    model = tritonconv.patch(nn.Sequential(make())).train(site != "fully connected")
    x = torch.randn(size, requires_grad=model.training)

    def launches() -> set:
        tuning.forget()
        with engines.listing(x.device) as listed:
            tuning.run(model, x)
        return set(compiling.distinct(listed))

    used = set()
    for key in tuning.problems(model, x):
        if key["op"] in measuring.OPERATORS:
            space = configs.space(key["op"], measuring.geometry_of(key), torch.float32, "cpu")
            before = launches()
            autotune.record(key, asdict(space[-1]), {"how": "measured"})
            used |= {key["op"]} if launches() != before else set()
    assert wanted <= used


@pytest.mark.parametrize("op", ("fprop", "dgrad", "wgrad"))
def test_the_algorithm_is_measured_after_the_tiles_of_both(op):
    conv = nn.Conv2d(16, 16, 3, padding=1)
    model = tritonconv.patch(nn.Sequential(conv).train(op != "fprop"))
    x = torch.randn(1, 16, 8, 8, requires_grad=op == "dgrad")
    tuned = quietly(model, x)
    found = [o.key["op"] for o in tuned.outcomes]
    fast = "winograd_wgrad" if op == "wgrad" else "winograd"
    assert max(found.index(op), found.index(fast)) < found.index(f"{op}_algorithm")
    (key,) = (o.key for o in tuned.outcomes if o.key["op"] == f"{op}_algorithm")
    for outcome in tuned.outcomes:
        if "arguments" in outcome.key:
            autotune.record(outcome.key, choice.KERNELS, {"how": "measured"})

    def kernels() -> set[str]:
        tuning.forget()
        with engines.listing(x.device) as launches:
            tuning.run(tuning.hollow(model), x)
        return {made.kernel.__name__ for made, _ in launches}

    fast = "winograd_gather" if op == "wgrad" else "conv_winograd"
    for name, kernel in (("gemm", f"conv_{op}"), ("winograd", fast)):
        problem = measuring.problem_of(key, x.device)
        assert {"algorithm": name} in problem.candidates
        assert problem.check(problem.run({"algorithm": name})()) is None
        autotune.record(key, {"algorithm": name}, {"how": "measured"})
        assert any(run.startswith(kernel) for run in kernels())


def test_asymmetric_padding_can_be_tuned():
    model = tritonconv.patch(nn.Sequential(nn.Conv2d(1, 2, (2, 4), padding="same")))
    with pytest.warns(UserWarning, match="even kernel lengths"):
        tuned = quietly(model, torch.randn(1, 1, 5, 5, requires_grad=True))
    assert {"fprop", "dgrad", "wgrad"} <= set(ops(o.key for o in tuned.outcomes))
    assert tuned.count("measured") == len(tuned.outcomes)


def test_a_convolution_that_pools_can_be_tuned():
    model = tritonconv.patch(nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    tuned = quietly(model, torch.randn(1, 1, 9, 13))  # an output of 5 × 7, whose last row and column are in no window
    calls = [o.key["options"] for o in tuned.outcomes if o.key["op"] == "conv2d"]
    assert calls
    assert all(options["activation"] == "relu" and [*options["max_pool"]] == [2, 2] for options in calls)
    assert {"fprop", "wgrad", "max_pool"} <= set(ops(o.key for o in tuned.outcomes))
    assert tuned.count("measured") == len(tuned.outcomes)


@pytest.fixture
def called(monkeypatch):
    """The public functions whose kernels are called."""
    names = []
    for name in ("conv2d", "max_pool2d"):
        function = getattr(functional, name)

        def record(*args, _name=name, _function=function, **options):
            names.append(_name)
            return _function(*args, **options)

        monkeypatch.setattr(functional, name, record)

    def bind(*args, _bind=launch.conv.bind_fprop, **options):
        names.append("conv2d")
        return _bind(*args, **options)

    monkeypatch.setattr(repeat, "launch", SimpleNamespace(bind_fprop=bind))  # inference goes past `functional`
    return names


def store_for_calls(model, x, verdict):
    for key in tuning.problems(model, x):
        if "arguments" in key:
            autotune.record(key, verdict, {"how": "measured"})
    tuning.forget()


def test_a_call_that_torch_runs_faster_is_left_to_torch(called):
    model, x = network(), torch.randn(SIZE)
    plain = tritonconv.unpatch(copy.deepcopy(model))
    store_for_calls(model, x, choice.KERNELS)
    called.clear()
    with torch.no_grad():
        model(x)
        assert sorted(called) == ["conv2d"] * 3 + ["max_pool2d"] * 2
        called.clear()
        store_for_calls(model, x, choice.TORCH)
        called.clear()
        assert torch.equal(model(x), plain(x))
        assert called == []
        model(torch.randn(2, *SIZE[1:]))  # was not measured
        assert len(called) == 5


def test_without_a_verdict_for_training_that_for_inference_holds(called):
    model, x = network(), torch.randn(SIZE)
    store_for_calls(model, x, choice.TORCH)
    called.clear()
    model(x).sum().backward()
    assert called == []
    store_for_calls(model.train(), x, choice.KERNELS)
    called.clear()
    model(x).sum().backward()
    assert len(called) == 5


def test_autocast_is_a_case_of_its_own(called):
    model, x = network(), torch.randn(SIZE)
    store_for_calls(model, x, choice.TORCH)
    called.clear()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(x)
        assert len(called) == 5
        tuned = quietly(model, x)
    assert {key["autocast"] for o in tuned.outcomes if "autocast" in (key := o.key)} == {"bfloat16"}
    assert tuned.count("failed") == 0


def test_bad_input_raises_torchs_own_error_and_lists_are_as_good_as_tuples():
    model = network()
    for bad in (None, "x", torch.zeros(1, 3, 6, 6), torch.zeros(1, 2, 6, 6).to_sparse(), torch.zeros(6)):
        with pytest.raises(Exception) as got:  # noqa: B017
            model.first(bad)
        with pytest.raises(Exception) as want:  # noqa: B017
            tritonconv.unpatch(copy.deepcopy(model)).first(bad)
        assert (type(got.value), str(got.value)) == (type(want.value), str(want.value))
    model.pool.kernel_size = model.pool.stride = [2, 2]
    x = integers(SIZE, torch.float32)
    assert torch.equal(model.pool(x), F.max_pool2d(x, 2))
