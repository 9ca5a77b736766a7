"""Blocks of 1-D convolution, and of transposed convolution with batch norm: what is found, and that it computes what it
did."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from networks import assert_as_before, statuses, step
from torch import nn

import tritonconv

SIZE = (2, 6, 14)


def norm(kind: type[nn.Module] = nn.BatchNorm1d, channels: int = 6) -> nn.Module:
    """With weights and statistics that are not those of the beginning."""
    made = kind(channels)
    with torch.no_grad():
        for tensor in (made.weight, made.bias, made.running_mean, made.running_var):
            tensor.uniform_(0.5, 1.5)
    return made


class Calls(nn.Module):
    def __init__(self, function, **options):
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, **options)
        self.norm, self.pad, self.relu = norm(), nn.ConstantPad1d((2, 0), 0.0), nn.ReLU(inplace=True)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


SAME = {"padding": 1}
FORMS = {
    "conv1d+batch_norm": (SAME, lambda m, x: m.norm(m.conv(x))),
    "conv1d+batch_norm+relu": (SAME, lambda m, x: m.relu(m.norm(m.conv(x)))),
    "conv1d+batch_norm+add+relu": ({"padding": "same"}, lambda m, x: F.relu(x + m.norm(m.conv(x)))),
    "conv1d+add": (SAME, lambda m, x: m.conv(x) + x),
    "conv1d+relu+add+relu": (SAME, lambda m, x: F.relu(x + m.relu(m.conv(x)))),
    "conv1d+tanh+add": (SAME, lambda m, x: torch.tanh(m.conv(x)) + x),
    "conv1d+silu": ({"stride": 2}, lambda m, x: F.silu(m.conv(x))),
    "pad+conv1d": ({}, lambda m, x: m.conv(m.pad(x))),
    "pad+conv1d+batch_norm+relu": ({}, lambda m, x: m.relu(m.norm(m.conv(F.pad(x, (2, 0)))))),
    "pad+conv1d+relu": ({"stride": 2}, lambda m, x: F.relu(m.conv(F.pad(x, pad=[1, 3], value=0.0)))),
    "conv1d+relu+batch_norm": (SAME, lambda m, x: m.norm(m.relu(m.conv(x)))),
    "conv1d+silu+batch_norm+add+relu": (SAME, lambda m, x: F.relu(m.norm(F.silu(m.conv(x))) + x)),
    "pad+conv1d+tanh+batch_norm+relu": ({}, lambda m, x: m.relu(m.norm(torch.tanh(m.conv(m.pad(x)))))),
    "conv1d+slice+relu": ({"padding": 4, "dilation": 2}, lambda m, x: F.relu(m.conv(x)[:, :, :-4])),
    "conv1d+slice+batch_norm+add": ({"padding": 2}, lambda m, x: m.norm(m.conv(x)[..., :-2].contiguous()) + x),
}


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("pattern", FORMS)
def test_a_block_is_fused_and_computes_what_it_did(pattern, training):
    options, forward = FORMS[pattern]
    model = Calls(forward, **options).double().train(training)
    plain, x = copy.deepcopy(model), torch.randn(SIZE, dtype=torch.float64)
    tritonconv.patch(model)
    assert statuses(model) == {"conv": f"fused {pattern}"}
    torch.testing.assert_close(step(model, x), step(plain, x))
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    with torch.no_grad():
        for _ in range(2):  # the second repeats the first
            got, want = model(x), plain(x)
            assert got.stride() == want.stride()
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "forward",
    (
        lambda m, x: m.conv(F.pad(x, (1, 1), mode="reflect")),
        lambda m, x: m.conv(F.pad(x, (1, 1), value=1.0)),
        lambda m, x: m.conv(F.pad(x, (-1, 1))),
        lambda m, x: m.conv(F.pad(x, (0, 0, 0, 0, 1, 1))),
        lambda m, x: operator.add(m.conv(y := m.pad(x)), y[..., 2:]),
        lambda m, x: m.conv(x)[:, :, 1:],
        lambda m, x: m.conv(x)[:, :-1],
        lambda m, x: F.relu(m.conv(x)[:, :, :-7]),
        lambda m, x: m.conv(x)[:, :, :-1],
    ),
    ids=("reflected", "ones", "cropped", "images", "used twice", "first", "channels", "many", "a view"),
)
def test_what_only_looks_like_padding(forward):
    model = tritonconv.patch(Calls(forward))
    assert not any(part in site.pattern for site in tritonconv.report(model) for part in ("pad", "slice"))
    assert_as_before(model, torch.randn(SIZE, dtype=torch.float64))


def test_a_hook_on_the_padding_sees_its_output():
    model = tritonconv.patch(Calls(FORMS["pad+conv1d"][1]))
    seen = []
    model.pad.register_forward_hook(lambda module, args, output: seen.append(output.shape[2]))
    assert_as_before(model, torch.randn(SIZE, dtype=torch.float64))
    assert seen[0] == SIZE[2] + 2


def test_padding_that_changes_is_asked_for_again():
    model = tritonconv.patch(Calls(FORMS["pad+conv1d"][1])).eval()
    model.pad.padding = (5, 1)
    assert_as_before(model, torch.randn(SIZE, dtype=torch.float64))
    model.pad.value = 1.0
    assert_as_before(model, torch.randn(SIZE, dtype=torch.float64))


class Causal(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


class Twice(nn.Conv1d):
    def forward(self, x):
        return super().forward(x) * 2 if x.sum() > 0 else super().forward(x)


def test_a_subclass_that_pads_before_it_convolves():
    model = nn.Sequential(Causal(6, 6, 3, dilation=2), nn.ReLU(), Causal(6, 6, 3), Twice(6, 6, 1))
    tritonconv.patch(model)
    found = statuses(model)
    assert found == {"0.conv1d": "fused pad+conv1d+relu", "2.conv1d": "swapped pad+conv1d", "3": "left conv1d"}
    assert_as_before(model, torch.randn(SIZE, dtype=torch.float64))
    model[0].dilation = (1,)  # what the forward was traced with
    assert_as_before(model, torch.randn(SIZE, dtype=torch.float64))
    tritonconv.unpatch(model)
    assert type(model[0]) is Causal


class Residual(nn.Module):
    """As of Bai et al., "An empirical evaluation of generic convolutional and recurrent networks" (2018)."""

    def __init__(self):
        super().__init__()
        layers = (each for _ in range(2) for each in (Causal(6, 6, 3), nn.ReLU(inplace=True), nn.Dropout(0.0)))
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.body(x)


def test_what_follows_calls_of_a_convolution_is_fused():
    model = tritonconv.patch(nn.Sequential(nn.Conv1d(6, 6, 1), Residual(), nn.ReLU()).eval())
    assert statuses(model) == {
        "0": "swapped conv1d",
        "1.body.0.conv1d": "fused pad+conv1d+relu",
        "1.body.3.conv1d": "fused pad+conv1d+relu+add+relu",
    }
    x = torch.randn(SIZE, dtype=torch.float64)
    assert_as_before(model, x)
    seen = []
    model[1].body[4].register_forward_hook(lambda module, args, output: seen.append(output.min()))
    assert_as_before(model, x)
    assert seen[0] >= 0
    assert_as_before(model.train(), x)
    model[2] = nn.Tanh()
    assert_as_before(model.eval(), x)


def test_a_call_is_not_delayed_past_what_overwrites_its_input():
    def forward(m, x):
        y = torch.tanh(F.conv1d(x, m.conv.weight, m.conv.bias, padding=1))
        return x.mul_(2) + y

    model = Calls(forward).double()
    plain, x = copy.deepcopy(model), torch.randn(SIZE, dtype=torch.float64)
    tritonconv.patch(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x.clone()), plain(x.clone()))


def test_a_subclass_that_is_excluded():
    model = tritonconv.patch(nn.Sequential(Causal(6, 6, 3), nn.Conv1d(6, 6, 1)), exclude=["0"])
    assert statuses(model)["0"] == "left conv1d"


@pytest.mark.parametrize("size", ((3, 6), (3, 6, 5)), ids=str)
def test_a_norm_by_itself(size):
    last = nn.Conv1d(6, 6, 1) if len(size) == 3 else nn.Linear(6, 6)
    model = tritonconv.patch(nn.Sequential(norm(), nn.ReLU(), last))
    assert statuses(model)["0"] == "fused batch_norm1d+relu"
    for training in (True, False):
        assert_as_before(model.train(training), torch.randn(size, dtype=torch.float64))


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize(
    ("conv", "batch_norm", "sizes"),
    ((nn.ConvTranspose1d, nn.BatchNorm1d, (3,)), (nn.ConvTranspose2d, nn.BatchNorm2d, (2, 3))),
)
def test_a_generator(conv, batch_norm, sizes, training):
    """DCGAN's, and a vocoder's: transposed convolution, batch norm, ReLU; running statistics too."""
    model = nn.Sequential(
        conv(6, 5, 4, bias=False), norm(batch_norm, 5), nn.ReLU(True),
        conv(5, 3, 4, 2, 1), norm(batch_norm, 3), nn.Tanh(),
    )  # fmt: skip
    model = model.double().train(training)
    plain, x = copy.deepcopy(model), torch.randn(2, 6, *sizes, dtype=torch.float64)
    tritonconv.patch(model)
    name = f"conv_transpose{len(sizes)}d"
    assert statuses(model) == {"0": f"fused {name}+batch_norm+relu", "3": f"fused {name}+batch_norm+tanh"}
    torch.testing.assert_close(step(model, x), step(plain, x))
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    with torch.no_grad():
        got, want = model(x), plain(x)
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want)


POOLS = {
    "max_pool1d": (nn.MaxPool1d(3, 2, 1, ceil_mode=True), lambda m, x: F.max_pool1d(x, 2)),
    "avg_pool1d": (nn.AvgPool1d(3, 2, 1, count_include_pad=False), lambda m, x: F.avg_pool1d(x, 2)),
    "adaptive_max_pool1d": (nn.AdaptiveMaxPool1d(5), lambda m, x: F.adaptive_max_pool1d(x, 3)),
    "adaptive_avg_pool1d": (nn.AdaptiveAvgPool1d(1), lambda m, x: torch.adaptive_avg_pool1d(x, 3)),
    "lp_pool1d": (nn.LPPool1d(2, 3), lambda m, x: F.lp_pool1d(x, 2.0, 2)),
}


@pytest.mark.parametrize("pool", POOLS)
def test_poolings_are_swapped(pool, kernel_calls):
    module, function = POOLS[pool]
    for form in (nn.Sequential(module), Calls(function)):
        model = tritonconv.patch(form)
        assert [status for fqn, status in statuses(model).items() if fqn != "conv"] == [f"swapped {pool}"]
        kernel_calls.clear()
        assert_as_before(model, torch.rand(SIZE, dtype=torch.float64))
        assert kernel_calls[0] == pool


def test_the_indices_of_a_pooling():
    model = tritonconv.patch(Calls(lambda m, x: F.max_pool1d(m.conv(x), 2, return_indices=True)))
    assert statuses(model)["max_pool1d_with_indices"] == "swapped max_pool1d"
    assert_as_before(model, torch.rand(SIZE, dtype=torch.float64))
    (_, pool) = tritonconv.plan(tritonconv.unpatch(model).eval().float(), torch.rand(SIZE))
    assert (pool.site.pattern, pool.output) == ("max_pool1d", (2, 6, 1, 6))  # as torch computes it


class Chomp(nn.Module):
    """As Bai et al.'s temporal convolutional network has it."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


class Temporal(nn.Module):
    """Registers its modules by themselves and, again, in a row."""

    def __init__(self):
        super().__init__()
        self.conv1, self.chomp1, self.relu1 = nn.Conv1d(6, 6, 3, padding=4, dilation=2), Chomp(4), nn.ReLU()
        self.conv2, self.chomp2, self.relu2 = nn.Conv1d(6, 6, 2, padding=1), Chomp(1), nn.ReLU()
        self.net = nn.Sequential(self.conv1, self.chomp1, self.relu1, self.conv2, self.chomp2, self.relu2)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.net(x) + x)


def test_a_temporal_block_whose_modules_go_by_two_names_is_listed_once():
    model = nn.Sequential(Temporal())
    (first, second) = tritonconv.plan(model, torch.randn(SIZE))
    assert (first.site.fqn, second.site.fqn) == ("0.conv1", "0.conv2")
    assert first.input == first.output == SIZE
    tritonconv.patch(model)
    assert statuses(model) == {
        "0.conv1": "fused conv1d+slice+relu",
        "0.conv2": "fused conv1d+slice+relu+add+relu",
    }
    members = "0.conv2", "0.relu2", "0.relu", "0.net", "0.chomp2"
    assert [site.members for site in tritonconv.report(model)][1] == members
    assert_as_before(model, torch.randn(SIZE, dtype=torch.float64))
    tritonconv.patch(model, exclude="0.conv1")
    assert statuses(model) == {"0.conv1": "left conv1d", "0.conv2": "fused conv1d+slice+relu+add+relu"}
