"""Blocks that cross the border between a forward and those of the modules that it calls."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls, assert_as_before, statuses
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import tritonconv

TRAINING = pytest.mark.parametrize("training", (True, False))


class NormAct(nn.Module):
    """Batch norm, dropout or none, and an activation, under names of its own."""

    def __init__(self, act: nn.Module, drop: nn.Module | None = None):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(2) + 0.5), nn.Parameter(torch.rand(2))
        self.register_buffer("mean", torch.rand(2))
        self.register_buffer("var", torch.rand(2) + 0.5)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.eps, self.act, self.drop = 1e-3, act, drop or nn.Identity()

    def forward(self, x):
        torch._assert(x.ndim == 4, "four dimensions")
        if self.training:
            self.seen.add_(1)
        x = F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class SubclassNormAct(nn.BatchNorm2d):
    """As timm has it: a subclass that repeats the forward of its class, and goes on."""

    def __init__(self, act: nn.Module):
        super().__init__(2)
        self.act = act

    def forward(self, x):
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        mean = self.running_mean if not self.training or self.track_running_stats else None
        var = self.running_var if not self.training or self.track_running_stats else None
        return self.act(F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps))


class Frozen(nn.Module):
    """As torchvision has it."""

    def __init__(self):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(2) + 0.5)

    def forward(self, x):
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        scale = weight * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (bias - self.running_mean.reshape(1, -1, 1, 1) * scale)


class Path(nn.Module):
    """Nothing in evaluation; in training a random choice of images (here: a fixed one)."""

    def forward(self, x):
        return x * 0.5 if self.training else x


def normed(m, x):
    return m.norm(m.conv(x))


FORMS = {
    "conv2d+batch_norm+silu": lambda: Calls(normed, norm=NormAct(nn.SiLU())),
    "conv2d+batch_norm+relu": lambda: Calls(normed, norm=SubclassNormAct(nn.ReLU(inplace=True))),
    "conv2d+batch_norm": lambda: Calls(normed, norm=Frozen()),
    "conv2d+batch_norm+add+relu": lambda: Calls(lambda m, x: F.relu(m.norm(m.conv(x)) + x), norm=Frozen()),
    "conv2d+batch_norm+add": lambda: Calls(lambda m, x: x + m.body(m.conv(x)), body=nn.Sequential(nn.BatchNorm2d(2))),
    "conv2d+gelu": lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.Identity(), nn.Sequential(nn.Identity(), nn.GELU())),
}


@TRAINING
@pytest.mark.parametrize("pattern", FORMS)
def test_a_block_is_fused_and_computes_what_it_did(pattern, training):
    model = FORMS[pattern]().train(training)
    before = copy.deepcopy(model).double()
    tritonconv.patch(model)
    assert list(statuses(model).values()) == [f"fused {pattern}"]
    assert_as_before(model)
    x = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x))
        torch.testing.assert_close(model(x), before(x))  # which may repeat the first
    model(x), before(x)
    torch.testing.assert_close(model.state_dict(), tritonconv.unpatch(model).state_dict())


def reasons(model):
    return {site.pattern: site.reason for site in tritonconv.report(model)}


def test_norms_of_ones_own_count_their_batches_once():
    model = tritonconv.patch(Calls(normed, norm=NormAct(nn.ReLU()))).double()
    plain = tritonconv.unpatch(copy.deepcopy(model))
    for _ in range(3):
        x = torch.randn(SIZE, dtype=torch.float64)
        torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    assert model.norm.seen == 3


def test_dropout_is_nothing_in_evaluation_and_a_border_in_training():
    model = tritonconv.patch(Calls(normed, norm=NormAct(nn.ReLU(), nn.Dropout(0.5))))
    assert reasons(model) == {
        "conv2d+batch_norm+relu": "in training: conv2d+batch_norm",
        "dropout": "in training alone",
    }
    assert_as_before(model.eval())
    plain = tritonconv.unpatch(copy.deepcopy(model.train()))
    x = torch.randn(SIZE, dtype=torch.float64)
    torch.manual_seed(0)
    got = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(got, plain(x))


def test_what_is_another_site_in_training_is_listed_once():
    children = {"act": nn.ReLU(), "drop": nn.Dropout(), "pool": nn.MaxPool2d(2), "aux": nn.Conv2d(2, 2, 1)}
    model = Calls(lambda m, x: m.pool(m.drop(m.act(m.conv(x)))), **children)
    tritonconv.patch(model, exclude="aux")
    assert {(site.fqn, site.pattern, site.reason) for site in tritonconv.report(model)} == {
        ("conv", "conv2d+relu+max_pool2d", "in training: conv2d+relu"),
        ("drop", "dropout", "in training alone"),
        ("pool", "max_pool2d", "in training alone"),
        ("aux", "conv2d", "excluded"),
    }
    (step,) = tritonconv.plan(model, torch.randn(SIZE))
    assert (step.site.fqn, step.site.pattern) == ("conv", "conv2d+relu+max_pool2d")
    assert [layer.site.fqn for layer in tritonconv.summary(model, torch.randn(SIZE))] == ["conv"] * 4


def test_a_site_of_one_mode_says_which():
    model = tritonconv.patch(Calls(lambda m, x: m.aux(x) if m.training else m.conv(x), aux=nn.Conv2d(2, 2, 1)))
    said = {site.fqn: site.reason for site in tritonconv.report(model)}
    assert said == {"conv": "in evaluation alone", "aux": "in training alone"}


def test_a_path_that_is_dropped_in_training():
    norm = nn.BatchNorm2d(2)
    model = tritonconv.patch(Calls(lambda m, x: m.path(m.norm(m.conv(x))) + x, norm=norm, path=Path()))
    assert reasons(model) == {"conv2d+batch_norm+add": "in training: conv2d+batch_norm"}
    assert_as_before(model.train())
    assert_as_before(model.eval())
    model.path.train()  # unlike the rest
    assert_as_before(model)


def change(m):
    m.norm.eps = 2.0


def another(m):
    m.norm.act = nn.Tanh()


def hooked(name):
    return lambda m: m.get_submodule(name).register_forward_hook(lambda module, args, y: y * 2)


CHANGES = {
    "a constant": change,
    "a module": another,
    "the mode": lambda m: m.norm.train(),
    **{f"a hook on {name}": hooked(name) for name in ("conv", "norm", "norm.act", "norm.drop")},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_after_patching(what):
    model = tritonconv.patch(Calls(normed, norm=NormAct(nn.SiLU()))).eval()
    with torch.no_grad():
        model(torch.randn(SIZE))
    CHANGES[what](model)
    assert_as_before(model)
    (site,) = tritonconv.report(model)
    assert "hook" not in what or site.reason.startswith("runs unfused: since patching, a member was hooked")


def test_nothing_is_looked_through_that_no_block_reaches_into(kernel_calls):
    body = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
    model = tritonconv.patch(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), body)).double()
    body.register_forward_hook(lambda module, args, y: y * 2)
    assert_as_before(model)
    kernel_calls.clear()
    model(torch.randn(SIZE, dtype=torch.float64))
    assert kernel_calls == ["conv2d+relu", "conv2d+relu"]


def test_frozen_statistics_of_other_dtypes_and_shapes():
    for scale in (torch.rand(1, 2, 1, 1), torch.rand(1, 1, 1, 1), torch.rand(1, 2, 6, 6)):
        model = Calls(lambda m, x: m.conv(x) * m.scale + m.shift)
        model.register_buffer("scale", scale.double())
        model.register_buffer("shift", torch.rand_like(scale))
        tritonconv.patch(model)
        assert statuses(model) == {"conv": "fused conv2d+batch_norm"}
        got = model(torch.ones(SIZE))
        want = tritonconv.unpatch(model)(torch.ones(SIZE))
        torch.testing.assert_close(got, want)


def write(m, x):
    y = m.conv(x)
    m.scale.mul_(2)
    return y * m.scale.reshape(1, -1, 1, 1) + m.scale.reshape(1, -1, 1, 1)


def test_a_scale_that_is_written_to_is_no_constant():
    model = Calls(write)
    model.register_buffer("scale", torch.rand(2))
    tritonconv.patch(model).double()
    assert statuses(model) == {"conv": "swapped conv2d"}
    plain = tritonconv.unpatch(copy.deepcopy(model))
    x = torch.randn(SIZE, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x))


def matched(m, x):
    match x:
        case torch.Tensor():
            return F.relu(m.conv(x))
    return m.conv(x)


@pytest.mark.parametrize("form", (matched, lambda m, x: F.relu(m.conv(x)) if x.__class__ is torch.Tensor else x))
def test_other_ways_to_check_the_type_of_an_input(form):
    model = tritonconv.patch(Calls(form))
    assert "conv2d+relu" in {site.pattern for site in tritonconv.report(model)}
    assert_as_before(model)


def test_a_forward_that_can_be_traced_in_one_mode_alone():
    def exits_early(m, x):
        y = F.relu(m.conv(x))
        return y if not m.training and y.sum() > 1e9 else F.max_pool2d(y, 2)

    model = tritonconv.patch(Calls(exits_early))
    (site,) = tritonconv.report(model)
    assert (site.status, site.pattern) == ("fused", "conv2d+relu+max_pool2d")
    assert site.reason == "not in evaluation: Calls.forward cannot be traced then"
    for training in (True, False):
        assert_as_before(model.train(training))


class Optional(nn.Module):
    """Its forward branches on what may be left out."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x, skip=None, *, scale=1.0, features=False, **others):
        y = F.relu(self.conv(x))
        y = y if skip is None else y * skip
        return (y * scale, y) if features else y * scale


CALLS = {
    "alone": lambda m, x: m(x),
    "by name": lambda m, x: m(x=x),
    "with another": lambda m, x: m(x, x),
    "of None": lambda m, x: m(x, None),
    "another number": lambda m, x: m(x, scale=2.0),
    "more outputs": lambda m, x: m(x, features=True),
}


@pytest.mark.parametrize("call", CALLS)
def test_inputs_that_may_be_left_out(call, kernel_calls):
    model = tritonconv.patch(Optional())
    assert statuses(model) == {"conv": "fused conv2d+relu"}
    plain, x = tritonconv.unpatch(copy.deepcopy(model)), torch.randn(SIZE)
    torch.testing.assert_close(CALLS[call](model, x), CALLS[call](plain, x))
    assert kernel_calls == (["conv2d+relu"] if call in ("alone", "by name") else ["conv2d"])
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        model()


def test_what_may_be_left_out_is_not_changed_by_tracing():
    class Collects(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x, seen=[]):  # noqa: B006
            seen.append(x)
            return F.relu(self.conv(x))

    tritonconv.patch(Collects())
    assert Collects.forward.__defaults__ == ([],)


def test_a_function_in_c_does_not_take_a_traced_input_for_a_tensor():
    model = tritonconv.patch(Calls(lambda m, x: F.relu(m.conv(x)) + torch.zeros(x)))  # once a crash
    with pytest.raises(TypeError):
        model(torch.randn(SIZE))


def test_a_convolution_by_its_function(kernel_calls):
    class Own(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    model = tritonconv.patch(nn.Sequential(Own(2, 2, 3, padding=1), nn.ReLU()))
    assert statuses(model) == {"0.conv2d": "fused conv2d+relu"}
    assert_as_before(model)
    assert kernel_calls == ["conv2d+relu"]


def test_the_norm_of_a_list_is_looked_through_with_its_owner():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)])
            self.norms = nn.ModuleList([NormAct(nn.ReLU()), NormAct(nn.ReLU())])

        def forward(self, x):
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = norm(conv(x))
            return x

    model = tritonconv.patch(nn.Sequential(Owner()))
    assert statuses(model) == dict.fromkeys(("0.convs.0", "0.convs.1"), "fused conv2d+batch_norm+relu")
    members = [site.members for site in tritonconv.report(model)]
    assert members[0] == ("0.convs.0", "0.norms.0.act", "0.norms.0", "0.norms.0.drop")
    assert_as_before(model)
    assert not any(isinstance(module, _BatchNorm) for module in model.modules())


UNFUSED = {
    "max-pooling not fused: only windows side by side are, without indices, of what never falls": nn.MaxPool2d(3, 2, 1),
    "LayerNorm not fused: no kernel computes it": nn.LayerNorm(2),
    "Softplus not fused: no kernel computes it": nn.Softplus(),
    "batch norm not fused: it comes after the activation": nn.Sequential(nn.PReLU(), nn.BatchNorm2d(2)),
    "": nn.Upsample(scale_factor=2),
}


@pytest.mark.parametrize("reason", UNFUSED)
def test_the_report_says_why_what_comes_next_is_not_fused(reason):
    model = tritonconv.patch(nn.Sequential(nn.Conv2d(2, 2, 1), UNFUSED[reason]))
    assert next(iter(tritonconv.report(model))).reason == reason
