"""Convolution, batch norm, residual and activation in one block: what is found, and that it computes what it did."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls, assert_as_before, statuses, step
from torch import nn

import tritonconv


def norm() -> nn.BatchNorm2d:
    """With weights and statistics that are not those of the beginning."""
    made = nn.BatchNorm2d(2)
    with torch.no_grad():
        for tensor in (made.weight, made.bias, made.running_mean, made.running_var):
            tensor.uniform_(0.5, 1.5)
    return made


FORMS = {
    "conv2d+batch_norm": lambda m, x: m.norm(m.conv(x)),
    "conv2d+batch_norm+relu": lambda m, x: m.act(m.norm(m.conv(x))),
    "conv2d+batch_norm+add": lambda m, x: m.norm(m.conv(x)) + x,
    "conv2d+batch_norm+add+relu": lambda m, x: F.relu(x + m.norm(m.conv(x))),
    "conv2d+relu+batch_norm": lambda m, x: m.norm(F.relu(m.conv(x))),
    "conv2d+tanh+batch_norm+add+relu": lambda m, x: F.relu(m.norm(m.conv(x).tanh()) + x),
    "conv2d+add": lambda m, x: x.add(m.conv(x)),
    "conv2d+add+silu": lambda m, x: F.silu(m.conv(x) + x),
    "conv2d+batch_norm+gelu_tanh": lambda m, x: F.gelu(m.norm(m.conv(x)), approximate="tanh"),
    "conv2d+leaky_relu": lambda m, x: F.leaky_relu(m.conv(x), 0.25, inplace=True),
    "conv2d+elu": lambda m, x: F.elu(m.conv(x), alpha=0.5),
    "conv2d+sigmoid": lambda m, x: m.conv(x).sigmoid(),
}


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("pattern", FORMS)
def test_a_block_is_fused_and_computes_what_it_did(pattern, training):
    children = {"norm": norm()} if "batch_norm" in pattern else {}
    if pattern == "conv2d+batch_norm+relu":
        children["act"] = nn.ReLU(inplace=True)
    model = tritonconv.patch(Calls(FORMS[pattern], **children)).train(training)
    assert statuses(model) == {"conv": f"fused {pattern}"}
    assert_as_before(model)


class BasicBlock(nn.Module):
    """As ResNet-18 has it, with its in-place addition and activations."""

    def __init__(self, shortcut: bool):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 2, 3, padding=1, bias=False), norm()
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, padding=1, bias=False), norm()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), norm()) if shortcut else None

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("shortcut", (True, False))
def test_a_residual_block(shortcut, training):
    model = tritonconv.patch(BasicBlock(shortcut)).train(training)
    found = statuses(model)
    assert found["conv1"] == "fused conv2d+batch_norm+relu"
    assert found["conv2"] == "fused conv2d+batch_norm+add+relu"
    assert not shortcut or found["downsample.0"] == "fused conv2d+batch_norm"
    assert_as_before(model)


def test_a_residual_that_a_block_of_the_same_forward_computes():
    model = Calls(lambda m, x: (lambda y: F.relu(m.norm(m.conv(y)) + y))(F.relu(m.first(x))), norm=norm())
    model.first = nn.Conv2d(SIZE[1], SIZE[1], 1)
    model = tritonconv.patch(model, strict=True)
    assert [site.status for site in tritonconv.report(model).sites] == ["fused", "fused"]
    assert_as_before(model)


def test_a_norm_before_the_convolution():
    model = tritonconv.patch(Calls(lambda m, x: m.conv(F.relu(m.norm(x))), norm=norm()))
    assert statuses(model) == {"norm": "fused batch_norm2d+relu", "conv": "swapped conv2d"}
    assert_as_before(model)
    assert_as_before(model.eval())


class DenseLayer(nn.Module):
    """As torchvision has DenseNet's: of one map or of a list of all before it."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 3, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        maps = [x] if isinstance(x, torch.Tensor) else x
        x = self.conv1(self.relu(self.norm1(torch.cat(maps, 1))))
        return self.conv2(self.relu(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    def __init__(self):
        super().__init__({f"layer{i}": DenseLayer(2 * i) for i in (1, 2, 3)})

    def forward(self, x):
        maps = [x]
        for layer in self.values():
            maps.append(layer(maps) if len(maps) > 1 else layer(x))
        return torch.cat(maps, 1)


@pytest.mark.parametrize("training", (True, False))
def test_a_dense_block_hands_on_lists_of_maps(training, monkeypatch):
    model = tritonconv.patch(nn.Sequential(DenseBlock(), nn.BatchNorm2d(8), nn.ReLU())).train(training)
    found = statuses(model)
    for layer in ("0.layer1", "0.layer3"):
        assert found[f"{layer}.norm1"] == "fused batch_norm2d+relu"
        assert found[f"{layer}.conv1"] == "fused conv2d+batch_norm+relu"
    assert found["1"] == "fused batch_norm2d+relu"
    assert_as_before(model)
    x = torch.randn(SIZE, dtype=torch.float64)
    assert_as_before(tritonconv.patch(model, x))  # each layer is met while the sample runs
    tritonconv.patch(model)

    def unfused(self, x):
        raise AssertionError("a norm ran by itself")

    monkeypatch.setattr(nn.BatchNorm2d, "forward", unfused)
    model(x)


class PreActivation(nn.Module):
    """A residual block of ResNet v2: what is normalized is also what the shortcut carries on."""

    def __init__(self):
        super().__init__()
        self.norm1, self.conv1 = norm(), nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.norm2, self.conv2 = norm(), nn.Conv2d(2, 2, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(y))) + x


@pytest.mark.parametrize("training", (True, False))
def test_a_residual_block_with_its_activations_first(training):
    plain = PreActivation().double().train(training)
    model = tritonconv.patch(copy.deepcopy(plain))
    assert statuses(model) == {
        "norm1": "fused batch_norm2d+relu",
        "conv1": "fused conv2d+batch_norm+relu",
        "conv2": "fused conv2d+add",
    }
    x = torch.randn(SIZE, dtype=torch.float64)
    torch.testing.assert_close(step(model, x), step(plain, x))
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()))


SETTINGS = {
    "cumulative average": {"momentum": None},
    "no affine": {"affine": False},
    "no running statistics": {"track_running_stats": False},
    "another momentum and eps": {"momentum": 0.7, "eps": 0.1},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_state_after_training_steps_and_then_evaluation(setting):
    plain = Calls(lambda m, x: F.relu(m.norm(m.conv(x))), norm=nn.BatchNorm2d(2, **SETTINGS[setting])).double()
    model = tritonconv.patch(copy.deepcopy(plain))
    for seed in range(3):
        x = torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(step(model, x), step(plain, x))
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain.eval()(x))


def test_frozen_norm_in_a_training_model():
    model = Calls(lambda m, x: F.relu(m.norm(m.conv(x)) + x), norm=norm())
    model.train().norm.eval()
    before = copy.deepcopy(model.double().norm.state_dict())
    assert_as_before(tritonconv.patch(model))
    torch.testing.assert_close(model.norm.state_dict(), before)


def test_one_value_per_channel_raises_torchs_error():
    model = tritonconv.patch(Calls(lambda m, x: m.norm(m.conv(x)), norm=norm()))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        model(torch.randn(1, 2, 1, 1))
    assert model.norm.num_batches_tracked == 1  # torch too counts before it looks


def test_a_hook_on_a_member_sees_its_value():
    plain = Calls(lambda m, x: F.relu(m.norm(m.conv(x))), norm=norm()).double()
    model = tritonconv.patch(copy.deepcopy(plain))
    seen = []
    for each in (plain, model):
        each.norm.register_forward_hook(lambda module, args, output: seen.append(args[0].detach().clone()))
    x = torch.randn(SIZE, dtype=torch.float64)
    torch.testing.assert_close(step(model, x), step(plain, x))
    torch.testing.assert_close(seen[0], seen[1])


def test_a_residual_of_another_shape_or_format_is_added_by_torch():
    model = tritonconv.patch(Calls(lambda m, x: F.relu(m.norm(m.conv(x)) + x[:, :1]), norm=norm()))
    assert_as_before(model)
    other = tritonconv.patch(
        Calls(lambda m, x: m.conv(x) + x.to(memory_format=torch.channels_last), norm=norm()), strict=True
    )
    assert_as_before(other)


def test_what_follows_may_not_overwrite_the_input_of_a_convolution_that_waits():
    """The block runs where its residual is at hand; here something overwrites its input before that."""

    def forward(m, x):
        x = x * 1
        y = m.conv(x)
        r = x.mul_(2)
        return y + r

    model = tritonconv.patch(Calls(forward))
    assert statuses(model) == {"conv": "swapped conv2d"}
    with torch.no_grad():
        x = torch.randn(SIZE)
        torch.testing.assert_close(model(x), tritonconv.unpatch(model)(x))
