"""`tritonconv.tune`: what it finds to tune, what it finds, and that patched models then do it."""

import copy
import io
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import integers
from rich.console import Console
from torch import nn
from torch.utils._pytree import tree_leaves

import autotune
import tritonconv
from autotune import store
from tritonconv import choice, configs, engines, functional, launch, measuring, tuning
from tritonconv.blocks import repeat
from tritonconv.configs.winograd import as_fprop
from tritonconv.geometry import AdaptiveGeometry, ConvGeometry, NormGeometry, PoolGeometry, RowGeometry
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


CONV = ConvGeometry(2, 3, 7, 8, 5, 3, 2, (1, 2), ((1, 1), (0, 0)))
SQUARE = ConvGeometry(2, 3, 7, 8, 5, 3, 3, (1, 1), ((1, 1), (0, 0)))
STRIDED = ConvGeometry(2, 3, 7, 8, 5, 4, 4, (2, 2), ((1, 1), (0, 0)))
DEPTHWISE = ConvGeometry(2, 4, 7, 8, 8, 3, 3, (2, 1), ((1, 1), (1, 1)), groups=4)
POOL = PoolGeometry(2, 5, 7, 8, 3, 2, (2, 2), (1, 0))
ROWS = RowGeometry(2, 6, 1, 40, 5, 1, 3, padding=((0, 0), (2, 0)))
NORMS = "norm_moments", "norm_apply", "norm_backward_sums", "norm_backward", "prelu_backward"
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
    **dict.fromkeys(NORMS, [NormGeometry(33, 5), NormGeometry(33, 5, 2, planar=True)]),
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


class Unpooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        return self.unpool(*self.pool(x))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 50, 1), nn.Flatten(), nn.Linear(200, 100))


# Sites, their inputs, and operators that have several tiles there in training, of a fully connected layer in inference.
SITES = {
    "1-D": (lambda: nn.Conv1d(64, 64, 5), (1, 64, 300), {"conv1d_fprop", "conv1d_dgrad", "conv1d_wgrad"}),
    "1-D Winograd": (lambda: nn.Conv1d(128, 128, 3), (1, 128, 600), {"conv1d_winograd"}),
    "norm": (lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), (2, 8, 60, 60), set(NORMS[:4])),
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
        model(x.to(memory_format=torch.channels_last))  # was not measured
        model(torch.randn(2, *SIZE[1:]))
        assert len(called) == 10


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


def test_a_listing_runs_nothing():
    x, weight = torch.randn(SIZE), torch.randn(3, 2, 1, 1)
    with engines.listing(x.device) as launches:
        y = functional.conv2d(x, weight)
    assert y.isnan().all()  # what the tests' empty memory holds
    ((made, dtypes),) = launches
    assert made.kernel is launch.conv.conv.conv_fprop
    assert dtypes == (torch.float32, torch.float32, None, torch.float32) + (None,) * 7
    assert torch.equal(functional.conv2d(x, weight), functional.conv2d(x, weight))


PROGRAM = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_leaves
rank, address, own = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
torch.set_num_threads(1)
import autotune, tritonconv
from autotune import store
from pathlib import Path
from types import SimpleNamespace
model = tritonconv.patch(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)).eval())
with store.at(Path(own)):
    tuned = tritonconv.tune(model, torch.randn(1, 1, 4, 4))
    assert len(tuned.outcomes) == tuned.count("measured") == 4, tuned
    assert all(autotune.lookup(o.key) == o.config for o in tuned.outcomes)
    assert tritonconv.tune(model, torch.randn(1, 1, 4, 4)).count("measured") == 0
print("fine")
dist.destroy_process_group()
"""


DYING = """
import os
from autotune import session
measure, measured = session._one, []

def once(key, *rest):
    if rank == 1 and measured:
        os._exit(9)  # in the middle of its share
    measured.append(key)
    return measure(key, *rest)

session._one = once
model = tritonconv.patch(nn.Sequential(*(nn.Conv2d(C, C + 1, 1) for C in (1, 2, 3, 4))))
with store.at(Path(own)):
    tuned = tritonconv.tune(model.eval(), torch.randn(1, 1, 4, 4))
print(tuned.count("measured"))
"""


def test_a_rank_that_dies_loses_what_it_was_measuring(tmp_path):
    """The other one finishes its share, and the next run finds what both had stored."""
    program = PROGRAM[: PROGRAM.index("model =")] + DYING
    rank0, rank1 = (start(program, rank, tmp_path, tmp_path / "store") for rank in (0, 1))
    assert rank1.wait() == 9
    printed, complaints = rank0.communicate()
    assert rank0.returncode == 0, complaints
    assert "tune: a rank is lost, and with it what it was measuring" in complaints
    assert len(list((tmp_path / "store").glob("*.json"))) == int(printed) + 1 > 3


def start(program: str, rank: int, folder: Path, own: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", program, str(rank), str(folder / "meet"), str(own)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, cwd=Path(__file__).parent.parent)


@pytest.mark.parametrize("shared", (False, True))
def test_ranks_share_the_work_and_all_have_the_results(shared, tmp_path):
    stores = [tmp_path / ("store" if shared else f"store{rank}") for rank in (0, 1)]
    processes = [start(PROGRAM, rank, tmp_path, stores[rank]) for rank in (0, 1)]
    assert [process.communicate()[0] for process in processes] == ["fine\n"] * 2
    names = [{path.name for path in folder.iterdir()} for folder in stores]
    assert names[0] == names[1]
    assert len(names[0]) == 4
