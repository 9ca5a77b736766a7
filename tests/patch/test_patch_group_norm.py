"""Group and instance norm, alone and with an activation: what is found, and that it computes what it did."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls, assert_as_before, statuses
from replays import assert_alike, replayed
from torch import nn

import tritonconv
from tritonconv import choice, functional

ON_CPUS = choice._ON_CPUS  # which tests do without, otherwise


def drawn(norm: nn.Module) -> nn.Module:
    """With weights and statistics that are not those of the beginning."""
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return norm


class GroupNormAct(nn.GroupNorm):
    """As timm has it."""

    def __init__(self, groups: int, channels: int):
        super().__init__(groups, channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


MODULES = {
    "group_norm": lambda: nn.GroupNorm(1, 2, eps=1e-3),
    "group_norm without weights": lambda: nn.GroupNorm(2, 2, affine=False),
    "instance_norm": lambda: nn.InstanceNorm2d(2),
    "instance_norm with weights": lambda: nn.InstanceNorm2d(2, affine=True),
    "instance_norm with statistics": lambda: nn.InstanceNorm2d(2, momentum=0.3, affine=True, track_running_stats=True),
    "instance_norm, no momentum": lambda: nn.InstanceNorm2d(2, momentum=None, track_running_stats=True),
}
ACTIVATIONS = {"": None, "+silu": nn.SiLU(), "+relu": nn.ReLU(inplace=True), "+prelu": nn.PReLU(2)}


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", MODULES)
def test_a_norm_runs_in_a_kernel_and_computes_what_it_did(kind, activation, training):
    act = copy.deepcopy(ACTIVATIONS[activation])
    layers = [nn.Conv2d(2, 2, 3), drawn(MODULES[kind]()), *([] if act is None else [act]), nn.Conv2d(2, 2, 1)]
    model = tritonconv.patch(nn.Sequential(*layers), strict=True).train(training)
    pattern = kind.split()[0].strip(",") + activation
    last = str(len(layers) - 1)
    status = "fused" if activation else "swapped"
    assert statuses(model) == {"0": "swapped conv2d", "1": f"{status} {pattern}", last: "swapped conv2d"}
    assert_as_before(model)


CALLS = {
    "fused group_norm+silu": lambda m, x: F.silu(F.group_norm(m.conv(x), 2, m.weight, m.bias)),
    "swapped group_norm": lambda m, x: F.group_norm(m.conv(x), num_groups=1, weight=m.weight, eps=0.1),
    "swapped instance_norm": lambda m, x: F.instance_norm(m.conv(x), weight=m.weight),
    "fused instance_norm+relu": lambda m, x: F.instance_norm(m.conv(x), None, None, m.weight, m.bias).relu(),
}


@pytest.mark.parametrize("status", CALLS)
def test_calls_of_functions(status):
    vectors = (nn.Parameter(torch.tensor(values)) for values in ([0.5, 1.5], [1.0, -1.0]))
    model = tritonconv.patch(Calls(CALLS[status], **dict(zip(("weight", "bias"), vectors, strict=True))))
    assert list(statuses(model).values()) == ["swapped conv2d", status]
    assert_as_before(model)


@pytest.mark.parametrize("groups", (None, "shape"))
def test_calls_that_are_left(groups):
    """Of a weight that is computed, or by sizes."""

    def forward(m, x):
        x = m.conv(x)
        return F.group_norm(x, x.shape[1] if groups else 2, None if groups else m.weight * 2)

    model = tritonconv.patch(Calls(forward, weight=nn.Parameter(torch.ones(2))))
    assert statuses(model) == {"conv": "swapped conv2d"}
    assert_as_before(model)


def test_a_subclass_with_an_activation():
    model = tritonconv.patch(nn.Sequential(nn.Conv2d(2, 2, 3), drawn(GroupNormAct(2, 2)), nn.Conv2d(2, 2, 1)))
    assert "fused group_norm+silu" in statuses(model).values()
    assert_as_before(model)


def test_rows_and_what_is_no_batch():
    layers = nn.Conv1d(2, 2, 3), nn.InstanceNorm1d(2, affine=True), nn.ReLU(), nn.Conv1d(2, 4, 1), nn.GroupNorm(2, 4)
    model = nn.Sequential(*layers).double()
    patched = tritonconv.patch(copy.deepcopy(model))
    assert statuses(patched)["1"] == "fused instance_norm+relu" and statuses(patched)["4"] == "swapped group_norm"
    x = torch.randn(3, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(patched(x), model(x))
    torch.testing.assert_close(patched[:3](x[0]), model[:3](x[0]))
    with pytest.warns(UserWarning, match="does not match num_features"):
        mine = tritonconv.patch(nn.Sequential(nn.InstanceNorm1d(7), nn.ReLU(), nn.Conv1d(2, 2, 1)))[:2]
        torch.testing.assert_close(mine(x), F.instance_norm(x).relu())


def test_a_hook_between_sees_what_the_norm_gives():
    model = tritonconv.patch(nn.Sequential(nn.Conv2d(2, 2, 1), nn.GroupNorm(1, 2), nn.ReLU()))
    seen = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.min().item()))
    assert (model(torch.randn(SIZE)) >= 0).all() and seen[0] < 0


def test_errors_are_torchs():
    x = torch.randn(2, 3, 4, 4)
    for norm in (nn.GroupNorm(1, 2), nn.InstanceNorm2d(2, affine=True)):
        with pytest.raises((RuntimeError, ValueError)) as theirs:
            norm(x)
        model = tritonconv.patch(nn.Sequential(norm, nn.ReLU(), nn.Conv2d(2, 2, 1)))
        with pytest.raises(type(theirs.value)) as mine:
            model(x)
        assert str(mine.value) == str(theirs.value)


def test_plan_and_summary_know_them():
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.GroupNorm(2, 6), nn.SiLU(), nn.Conv2d(6, 2, 1)).eval()
    x = torch.randn(SIZE)
    step = next(step for step in tritonconv.plan(model, x) if step.site.fqn == "1")
    assert (step.site.pattern, step.algorithm, step.reason) == ("group_norm+silu", "direct", "")
    assert step.geometry.groups == 2 and step.config is not None
    assert [layer.site.pattern for layer in tritonconv.summary(model, x)][1:3] == ["group_norm+silu"] * 2


def test_what_is_faster_on_a_cpu_runs_there(monkeypatch):
    monkeypatch.setattr(choice, "_ON_CPUS", ON_CPUS)
    calls = []
    for name in ("group_norm", "instance_norm"):
        ours = getattr(functional, name)
        monkeypatch.setattr(functional, name, lambda *a, ours=ours, name=name, **k: calls.append(name) or ours(*a, **k))
    choice.forget()
    for make, size in ((lambda: nn.GroupNorm(2, 8), 256), (lambda: nn.InstanceNorm2d(8), 128)):
        for rows, taken in ((4, False), (size, True)):
            model = tritonconv.patch(nn.Sequential(make(), nn.ReLU(), nn.Conv2d(8, 2, 1))).eval()
            calls.clear()
            with torch.no_grad():
                model(torch.randn(1, 8, rows, size))
            assert bool(calls) == taken
    alone = tritonconv.patch(nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8)))
    _, site = tritonconv.report(alone)
    assert site.reason == "on CPUs torch runs it, unless tuning finds the kernel faster"


@pytest.mark.parametrize("memory_format", (torch.channels_last, torch.contiguous_format), ids=str)
def test_recorded_calls(memory_format):
    norms = nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8, track_running_stats=True)
    parts = [part for norm in map(drawn, norms) for part in (nn.Conv2d(8, 8, 3, padding=1), norm, nn.SiLU())]
    plain = nn.Sequential(*parts, nn.GroupNorm(4, 8)).double().eval()
    patched = tritonconv.patch(copy.deepcopy(plain))
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    assert_alike(patched, plain, x)
    assert replayed(patched)
    for model in (plain, patched):
        model[1].num_groups = 4
        model[4].eps = 0.5
    assert_alike(patched, plain, x)


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("weights", (torch.channels_last, torch.contiguous_format), ids=str)
def test_images_in_channels_last_memory_stay_so_up_to_the_next_convolution(weights, training):
    """Where torch's instance norm changes them, and only where the convolution's result does not tell."""
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4))
    plain = plain.double().to(memory_format=weights).train(training)
    patched = tritonconv.patch(copy.deepcopy(plain))
    seen = []
    patched[3].register_forward_pre_hook(lambda module, inputs: seen.append(choice.is_nhwc(*inputs)))
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    got, want = patched(x), plain(x)
    assert seen == [weights is torch.channels_last]
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()
    dy = torch.randn_like(want)
    gradients = [torch.autograd.grad(y, model[0].weight, dy) for y, model in ((got, patched), (want, plain))]
    torch.testing.assert_close(*gradients)
