"""`patch` with a sample: the sites are timed, unless when="always", and the results are compared."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, assert_as_before, statuses, vgg_like
from torch import nn
from torch.nn.utils import prune

import tritonconv
from tritonconv import functional
from tritonconv.capture.sites import capture
from tritonconv.patching import swap, trial


class Mixed(nn.Module):
    """A fused block with a residual, a pooling that is a function, and a child that cannot be traced."""

    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() == x.sum() else x

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Dropout()
        self.child = self.Untraceable()

    def forward(self, x):
        twice = 2 * x
        x = F.relu(self.norm(self.conv(x)) + twice)
        return self.child(self.drop(F.max_pool2d(x, 2)))


MIXED = {"conv", "max_pool2d", "child.conv"}


@pytest.fixture
def ratios(monkeypatch):
    """What timing says of the sites, in their order, instead of timing them."""
    given = []

    def times(self, device):
        inputs = [torch.randn_like(x, device=device) for x in self.inputs]
        torch.testing.assert_close(self.ours(*inputs), self.theirs(*inputs))  # the pieces are the same computation
        return [given.pop(0)], [1.0]

    monkeypatch.setattr(trial.Piece, "times", times)
    return given


def state_of(model):
    return copy.deepcopy(model.state_dict()), {name: m.training for name, m in model.named_modules()}


def test_a_sample_changes_neither_statistics_nor_modes_nor_random_numbers():
    model = Mixed()
    model.drop.eval()
    state, modes = state_of(model)
    x, random = torch.randn(SIZE), torch.get_rng_state()
    assert tritonconv.patch(model, x, when="faster") is model
    assert torch.equal(random, torch.get_rng_state())
    after, modes_after = state_of(model)
    assert modes_after == modes
    torch.testing.assert_close(after, state, rtol=0, atol=0)
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())
    assert_as_before(model.eval())


@pytest.mark.parametrize("asked", [tritonconv.plan, tritonconv.summary, tritonconv.patch, tritonconv.tune])
def test_a_model_that_overwrites_its_input_leaves_the_sample_as_it_is(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(nn.SiLU(inplace=True), nn.Conv2d(2, 2, 1))
    model = tritonconv.patch(model) if asked is tritonconv.tune else model
    x = torch.randn(SIZE)
    before = x.clone()
    asked(model, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("options", [{}, {"when": "faster"}])
def test_what_is_faster_is_patched_and_the_rest_says_why(options, ratios):
    """The default with a sample."""
    ratios[:] = [2.0, 0.931, 1.5]
    model = tritonconv.patch(Mixed(), torch.randn(SIZE), **options)
    assert statuses(model) == {
        "conv": "fused conv2d+batch_norm+add+relu",
        "max_pool2d": "left max_pool2d",
        "child.conv": "swapped conv2d",
        "drop": "swapped dropout",
    }
    reasons = {site.fqn: site.reason for site in tritonconv.report(model)}
    assert reasons["conv"] == ""
    assert reasons["max_pool2d"] == "not faster: 0.93 of torch"
    assert not ratios
    assert_as_before(model.eval())


def test_a_slow_block_is_left_with_all_its_members(ratios, kernel_calls):
    ratios[:] = [0.5, 0.5, 0.5]
    model = tritonconv.patch(Mixed(), torch.randn(SIZE), when="faster")
    assert {site.reason for site in tritonconv.report(model)} == {
        "not faster: 0.50 of torch",
        "in training alone; not timed",
    }
    kernel_calls.clear()
    model(torch.randn(SIZE))
    assert kernel_calls == []


def test_a_sample_gives_lazy_modules_their_weights(ratios, recwarn):
    ratios[:] = [2.0]

    def lazy():
        return nn.Sequential(nn.LazyConv2d(3, 3, bias=False), nn.LazyBatchNorm2d(), nn.ReLU())

    (step,) = tritonconv.plan(lazy(), torch.randn(SIZE))
    assert step.site.pattern == "conv2d+batch_norm+relu" and step.algorithm
    model = tritonconv.patch(lazy(), torch.randn(SIZE), strict=True)
    assert statuses(model) == {"0": "fused conv2d+batch_norm+relu"}
    assert not [warning for warning in recwarn if "patch" in str(warning.message)]


def test_of_an_empty_sample_nothing_is_timed(ratios):
    model = tritonconv.patch(Mixed(), torch.randn(0, *SIZE[1:]))
    assert {site.status for site in tritonconv.report(model)} == {"fused", "swapped"}
    assert all("not timed" in site.reason for site in tritonconv.report(model))


@pytest.mark.parametrize("model", (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1)), nn.Conv2d(2, 2, 3, padding=1)))
def test_hooks_are_timed_on_both_sides(model, monkeypatch):
    """Those of pruning compute the weight."""
    called = []
    conv = next(module for module in model.modules() if not module._modules)
    prune.l1_unstructured(conv, "weight", 0.5)
    conv.register_forward_hook(lambda module, args, y: called.append(type(module).__name__))

    def times(self, device):
        called.clear()
        (x,) = self.inputs
        x = torch.randn_like(x, device=device)
        torch.testing.assert_close(self.ours(x), self.theirs(x))
        assert called == ["PatchedConv2d", "Conv2d"]
        return [2.0], [1.0]

    monkeypatch.setattr(trial.Piece, "times", times)
    tritonconv.patch(model, torch.randn(SIZE))
    assert [site.status for site in tritonconv.report(model)] == ["swapped"]


def test_sites_that_are_alike_share_their_times(ratios):
    """By the median: two are alike, the third has no bias."""
    convs = [nn.Conv2d(2, 2, 3, padding=1) for _ in range(2)]
    model = nn.Sequential(*convs, nn.Conv2d(2, 2, 3, padding=1, bias=False))
    ratios[:] = [0.5, 1.7, 0.25]
    tritonconv.patch(model, torch.randn(SIZE))
    assert list(statuses(model).values()) == ["swapped conv2d"] * 2 + ["left conv2d"]
    assert not ratios


def test_slower_sites_are_no_failure_under_strict_and_excluded_ones_are_not_timed(ratios):
    ratios[:] = [0.5, 2.0]
    model = tritonconv.patch(Mixed(), torch.randn(SIZE), when="faster", strict=True, exclude="max_pool2d")
    reasons = {site.fqn: site.reason for site in tritonconv.report(model)}
    assert reasons["max_pool2d"] == "excluded"
    assert not ratios


def test_what_was_not_timed_is_patched_and_says_so(monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", -1)
    model = tritonconv.patch(vgg_like(), torch.randn(SIZE), when="faster")
    assert all(site.status != "left" and site.reason.endswith("not timed") for site in tritonconv.report(model))


def test_every_site_is_timed_really(device, monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 1e3)  # on a busy machine, too
    model = Mixed().to(device).eval()
    found = capture(model, lambda fqn, module: True)
    speeds = trial.speeds(model, found, torch.randn(SIZE, device=device))
    assert speeds.keys() == MIXED
    pieces = trial.pieces_of(model, found, torch.randn(SIZE, device=device))
    assert {fqn: len(piece.inputs) for fqn, piece in pieces.items()} == {"conv": 2, "max_pool2d": 1, "child.conv": 1}
    assert all(ratio > 0 for ratio in speeds.values())
    for piece in pieces.values():
        inputs = [torch.randn_like(x, device=device) for x in piece.inputs]
        with torch.no_grad():
            theirs, ours = (run(*inputs) for run in piece.in_a_row(3))
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(ours, 3 * (piece.theirs(*inputs),))


def test_a_wrong_kernel_is_named_and_undone(monkeypatch):
    model = vgg_like()
    right = functional.max_pool2d
    monkeypatch.setattr(functional, "max_pool2d", lambda *args, **kwargs: 1.5 * right(*args, **kwargs))
    with pytest.raises(RuntimeError, match=r"Sequential differs on the sample by .* alone, (1|2\.2) \(max_pool2d\)"):
        tritonconv.patch(model, torch.randn(SIZE), when="always")
    assert swap.plan_of(model) is None
    assert type(model) is nn.Sequential


class Chaotic(nn.Module):
    """What it gives depends on how its sums are rounded."""

    def __init__(self):
        super().__init__()
        self.pool, self.conv = nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return (self.conv(self.pool(x)) * 1e4).sin()


def test_as_near_to_the_exact_result_is_no_difference(monkeypatch):
    model, x = Chaotic(), torch.randn(1, 16, 32, 32)
    with torch.no_grad():
        want = model(x)
        tritonconv.patch(model, x, when="always")
        assert (model(x) - want).abs().max() > 1e-3  # which is more than half of the digits
        tritonconv.unpatch(model)
    right = functional.max_pool2d
    monkeypatch.setattr(functional, "max_pool2d", lambda *args, **kwargs: 1.5 * right(*args, **kwargs))
    with pytest.raises(RuntimeError, match="Chaotic differs on the sample"):
        tritonconv.patch(model, x, when="always")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_in_both_is_no_difference(value):
    x = torch.randn(SIZE)
    x[0, 0, 2, 2] = value
    tritonconv.patch(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()), x, when="always")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rounding_is_no_difference(dtype):
    tritonconv.patch(vgg_like().to(dtype), torch.randn(SIZE, dtype=dtype), when="always")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": torch.ones(2, 5, 6, 6)}, r"Sequential cannot run the sample, \[2, 5, 6, 6\] of torch.float32: "),
        ({"sample": torch.ones(SIZE, device="meta")}, "the sample is on meta, Sequential on cpu; both must be on one"),
        ({"sample": []}, "the sample, of type list, holds no tensor: it must be the model's input, a tuple"),
        ({"when": "faster"}, "when='faster' needs a sample"),
        ({"when": "often"}, "when must be 'faster' or 'always', got 'often'"),
        ({"memory_format": torch.channels_last_3d}, "memory_format must be preserve_format or channels_last of torch"),
    ],
)
def test_bad_use_gets_one_sentence_and_no_patch(options, message):
    model = vgg_like()
    with pytest.raises(ValueError, match=message) as error:
        tritonconv.patch(model, **options)
    assert "\n" not in str(error.value)
    assert swap.plan_of(model) is None


def test_a_model_on_several_devices_cannot_be_tried():
    """Without a sample it can be patched: each kernel looks for itself where its operands are."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, device="meta"))
    assert statuses(tritonconv.patch(model)) == {"0": "swapped conv2d", "1": "swapped conv2d"}
    with pytest.raises(ValueError, match="the sample is on cpu, Sequential on cpu and meta"):
        tritonconv.patch(model, torch.ones(SIZE))
