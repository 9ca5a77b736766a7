"""Whatever kind of site it is: tuning can measure torch against it, and what torch runs faster torch runs."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import autotune
import tritonconv
from autotune import store
from tritonconv import choice, engines, measuring, tuning
from tritonconv.ops import activations

SIZE = (2, 4, 7, 6)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=None)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)) + x)


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return F.leaky_relu(self.conv(x) + x, 0.2)


class Calls(nn.Module):
    """Poolings that are called as functions, with the input by name and by position."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return F.avg_pool2d(input=x, kernel_size=2) + F.adaptive_avg_pool2d(x, 3)


class Unpooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.unpool = nn.MaxUnpool2d(2)
        self.register_buffer("indices", torch.arange(42).view(7, 6).expand(SIZE))

    def forward(self, x):
        return self.unpool(x, self.indices)


ON_CPUS = choice._ON_CPUS  # which tests do without, otherwise
# A site, the function that it calls, and the sizes of an input.
SITES = {
    "conv2d_batch_norm": (Residual, SIZE),
    "conv2d": (Added, SIZE),
    "batch_norm": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), SIZE),
    "conv_transpose2d": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.Sigmoid()), SIZE),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 2, 3, padding=2), nn.ReLU()), (2, 4, 9)),
    "max_pool2d": (lambda: nn.MaxPool2d(3, 2, 1), SIZE),
    "adaptive_max_pool2d": (lambda: nn.AdaptiveMaxPool2d(2), SIZE),
    "max_unpool2d": (Unpooling, SIZE),
    "avg_pool2d": (lambda: nn.AvgPool2d(2, ceil_mode=True), SIZE),
    "adaptive_avg_pool2d": (lambda: nn.AdaptiveAvgPool2d((3, None)), SIZE),
    "lp_pool2d": (lambda: nn.LPPool2d(2, 2), SIZE),
}


@pytest.fixture(autouse=True)
def empty(tmp_path):
    """An empty store; kernels stay where they are kept."""
    tuning.forget()
    with store.at(tmp_path):
        yield
    tuning.forget()


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that are bound."""
    names = []
    monkeypatch.setattr(
        engines, "_pinned", engines.replace(engines.ENGINES["native"], bind=lambda launch: _bind(launch, names))
    )
    return names


def _bind(launch, names):
    names.append(launch.kernel.__name__)
    return engines.native.bind(launch)


def pair(make) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = make()
    return tritonconv.patch(copy.deepcopy(plain)), plain


def step(model, size):
    """The output, and the gradients where training."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(0), requires_grad=model.training)
    y = model(x)
    if model.training:
        y.sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("training", (False, True))
@pytest.mark.parametrize("op", SITES)
def test_every_kind_of_site_can_be_left_to_torch(op, training, launches):
    make, size = SITES[op]
    model, plain = (module.train(training) for module in pair(make))
    keys = [key for key in tuning.problems(model, torch.randn(size)) if "arguments" in key]
    assert [key["op"] for key in keys if key["backward"] == bool(training and list(plain.parameters()))] == [op]
    for key in keys:
        autotune.record(key, choice.TORCH, {"how": "measured"})
    tuning.forget()
    launches.clear()
    with torch.set_grad_enabled(training):
        got, want = step(model, size), step(plain, size)
    assert launches == []
    for ours, theirs in zip(got, want, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@pytest.mark.parametrize("op", [op for op in SITES if op != "max_unpool2d"])  # whose indices cannot be made up
def test_a_plan_knows_what_tuning_found(op, monkeypatch):
    monkeypatch.setattr(choice, "_ON_CPUS", ON_CPUS)
    make, size = SITES[op]
    model, x = make().eval(), torch.randn(size)
    for faster in (choice.TORCH, choice.KERNELS):
        (key,) = (key for key in tuning.problems(tritonconv.patch(model), x) if "arguments" in key)
        autotune.record(key, faster, {"how": "measured"})
        (step,) = tritonconv.plan(model, x)
        assert (step.algorithm is None) == (faster is choice.TORCH)
        assert step.reason == ("tuning found torch faster" if faster is choice.TORCH else "")


@pytest.mark.parametrize("training", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_every_kind_of_site_can_be_measured(dtype, training, device):
    for make, size in SITES.values():
        model, _ = pair(make)
        x = torch.randn(size, dtype=dtype, device=device)
        model.to(x.device, dtype).train(training)
        for key in tuning.problems(model, x):
            if "arguments" not in key:
                continue
            problem = measuring.problem_of(key, x.device)
            for candidate in problem.candidates:
                assert problem.check(problem.run(candidate)()) is None, (key, candidate)


def test_functions_are_chosen_too():
    model, plain = pair(Calls)
    x = torch.randn(SIZE)
    tuned = tritonconv.tune(model, x, console=Console(file=io.StringIO()))
    assert {"avg_pool2d", "adaptive_avg_pool2d"} <= {outcome.key["op"] for outcome in tuned.outcomes}
    torch.testing.assert_close(model(x), plain(x))


def test_momentum_makes_no_other_call_of_it():
    """That of a cumulative average is another one in each step."""
    model, _ = pair(Residual)
    x = torch.randn(SIZE)
    first = tuning.problems(model.train(), x)
    model(x)
    assert tuning.problems(model, x) == first


def test_a_small_pooling_is_left_to_torch_unless_tuned(monkeypatch):
    monkeypatch.setattr(choice, "_ON_CPUS", ON_CPUS)
    small, large = torch.zeros(1, 64, 8, 8), torch.zeros(1, 64, 64, 64)
    for x, faster in ((small, True), (large, False)):
        tuning.forget()
        arguments = (x, 2, 2, 0, 1, False, False), {}
        assert choice.torch_is_faster("max_pool2d", *arguments) is faster
        with engines.use("interpreter"):
            assert not choice.torch_is_faster("max_pool2d", *arguments)
        (key, *_) = (k for k in _asked(arguments) if k["target"] == "cpu")
        autotune.record(key, choice.TORCH if not faster else choice.KERNELS, {"how": "measured"})
        tuning.forget()
        assert choice.torch_is_faster("max_pool2d", *arguments) is not faster


@pytest.mark.parametrize("pool", (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d(3)))
def test_a_pooling_of_one_image_without_a_batch(pool, monkeypatch):
    monkeypatch.setattr(choice, "_ON_CPUS", ON_CPUS)
    x = torch.randn(4, 6, 6)
    assert torch.equal(tritonconv.patch(nn.Sequential(copy.deepcopy(pool)))(x), pool(x))


def _asked(arguments):
    tuning.forget()
    with autotune.asked() as keys:
        choice.torch_is_faster("max_pool2d", *arguments)
    return keys


# Channels and dtype of what is added.
RESIDUALS = {"none": None, "alike": (4, torch.float32), "stretched": (1, torch.float32), "wider": (4, torch.float64)}


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("activation", [*activations._PLAIN, "leaky_relu(0.2)", "elu(0.5)"])
@pytest.mark.parametrize("op", ("conv2d", "conv2d_batch_norm"))
def test_what_torch_runs_writes_only_over_what_is_its_own(op, activation, residual):
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 5, 5), torch.randn(4, 4, 3, 3, requires_grad=True)
    channels, dtype = RESIDUALS[residual] or (4, torch.float32)
    added = None if residual == "none" else torch.randn(2, channels, 3, 3, dtype=dtype, requires_grad=True)
    norm = (None, None, torch.ones(4), torch.zeros(4), True, 0.1, 1e-5) if op.endswith("norm") else ()
    y = F.conv2d(x, w)
    y = F.batch_norm(y, *norm) if norm else y
    want = activations.activation(activation).apply(y if added is None else y + added)
    before = None if added is None else added.detach().clone()
    got = choice.torchs(op)(x, w, None, *norm, residual=added, activation=activation)
    leaves = [w] if added is None else [w, added]
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    gradients = (torch.autograd.grad(value.square().sum(), leaves) for value in (got, want))
    torch.testing.assert_close(next(gradients), next(gradients), rtol=0, atol=0)
    if added is not None:
        assert torch.equal(added, before)
