"""Padding by zeros before a 2-D convolution, of which it becomes a part: what is found, and that it computes what it
did."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls, assert_as_before, statuses
from torch import nn

import tritonconv


def network(forward, pad=(0, 1, 0, 1), **options) -> Calls:
    model = Calls(forward, pad=nn.ZeroPad2d(pad), norm=nn.BatchNorm2d(2), pool=nn.MaxPool2d(2))
    model.conv = nn.Conv2d(2, 2, 3, **options)
    return model


FORMS = {
    "pad+conv2d": (lambda m, x: m.conv(m.pad(x)), {"stride": 2}),
    "pad+conv2d+relu": (lambda m, x: F.relu(m.conv(F.pad(x, (2, 0, 1, 3)))), {"padding": (0, 1)}),
    "pad+conv2d+batch_norm+silu": (lambda m, x: F.silu(m.norm(m.conv(F.pad(x, (1, 1))))), {"padding": (1, 0)}),
    "pad+conv2d+add": (lambda m, x: m.conv(m.pad(x)) + x, {"pad": (2, 0, 0, 2), "groups": 2}),
    "pad+conv2d+relu+max_pool2d": (lambda m, x: m.pool(F.relu(m.conv(m.pad(x)))), {}),
}


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("pattern", FORMS)
def test_a_block_is_fused_and_computes_what_it_did(pattern, training):
    forward, options = FORMS[pattern]
    model = tritonconv.patch(network(forward, **options)).train(training)
    assert statuses(model)["conv"] == f"fused {pattern}"
    assert_as_before(model)
    plain = tritonconv.unpatch(copy.deepcopy(model.eval()))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(SIZE, dtype=torch.float64).contiguous(memory_format=memory_format)
        with torch.no_grad():
            for _ in range(2):  # the second repeats the first
                got, want = model(x), plain(x)
                assert got.stride() == want.stride()
                torch.testing.assert_close(got, want)


CALLS = {
    "swapped pad+conv2d": lambda m, x: F.conv2d(F.pad(x, (0, 1, 0, 1)), m.conv.weight, m.conv.bias, 2),
    "fused pad+conv2d+relu": lambda m, x: F.relu(F.conv2d(m.pad(x), m.conv.weight, None, 1, (0, 1), 1, 1)),
    "fused pad+conv2d+add": lambda m, x: torch.conv2d(F.pad(x, (2, 0)), m.conv.weight, padding=[1, 0]) + x,
}


@pytest.mark.parametrize("what", CALLS)
def test_it_becomes_a_part_of_a_call_of_the_function_too(what):
    model = tritonconv.patch(network(CALLS[what]))
    assert statuses(model)["conv2d"] == what
    assert_as_before(model)


@pytest.mark.parametrize("convolve", (lambda m, x: m.conv(x), lambda m, x: F.conv2d(x, m.conv.weight, m.conv.bias * 2)))
def test_the_input_may_be_overwritten_between_padding_and_convolution(convolve):
    def forward(m, x):
        x = x * 1
        padded = F.pad(x, (1, 1, 1, 1))
        x.mul_(0)
        return convolve(m, padded)

    model, x = tritonconv.patch(network(forward)), torch.randn(SIZE)
    with torch.no_grad():  # autograd would refuse the overwriting
        torch.testing.assert_close(model(x), tritonconv.unpatch(copy.deepcopy(model))(x))


def test_a_subclass_that_pads_by_a_module_of_its_own():
    """As EfficientNets ported from TensorFlow have them."""

    class StaticSame(nn.Conv2d):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

        def forward(self, x):
            x = self.static_padding(x)
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    model = tritonconv.patch(nn.Sequential(StaticSame(2, 2, 3, stride=2), nn.SiLU()))
    (site,) = tritonconv.report(model)
    assert (site.fqn, site.status, site.pattern) == ("0.conv2d", "fused", "pad+conv2d+silu")
    assert site.members == ("1", "0", "0.static_padding")
    assert_as_before(model)
    model[0].static_padding = nn.ReflectionPad2d(1)
    assert_as_before(model)


@pytest.mark.parametrize(
    "forward",
    (
        lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), mode="reflect")),
        lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), value=1.0)),
        lambda m, x: m.conv(F.pad(x, (-1, 1, 0, 0))),
        lambda m, x: m.conv(y := m.pad(x)) + y[..., :5, :5],
        lambda m, x: m.conv(F.pad(x, (0, 0, 0, 0, 1, 0))[:, :2]),
    ),
    ids=("reflected", "ones", "cropped", "used twice", "channels"),
)
def test_what_only_looks_like_padding(forward):
    model = tritonconv.patch(network(forward))
    assert statuses(model)["conv"].endswith(" conv2d")
    assert_as_before(model)


@pytest.mark.parametrize(
    "forward", (lambda m, x: m.conv(m.pad(x)), lambda m, x: F.conv2d(m.pad(x), m.conv.weight, padding="same"))
)
def test_padding_beside_same_is_left_to_torch(forward):
    model = tritonconv.patch(network(forward, padding="same"))
    assert all("pad" not in site.pattern for site in tritonconv.report(model))
    assert_as_before(model)


CHANGES = {
    "other sides": lambda m: setattr(m.pad, "padding", (3, 0, 1, 0)),
    "cropping": lambda m: setattr(m.pad, "padding", (-1, 1, 1, 1)),
    "a number": lambda m: setattr(m.pad, "value", 1.0),
    "a string": lambda m: setattr(m.conv, "padding", "same"),
    "a hook": lambda m: m.pad.register_forward_hook(lambda module, args, output: output + 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_patching(change):
    model = tritonconv.patch(network(lambda m, x: F.relu(m.conv(m.pad(x))), padding=1)).double()
    plain, x = tritonconv.unpatch(copy.deepcopy(model)), torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        model(x)
    for each in (model, plain):
        CHANGES[change](each)
    torch.testing.assert_close(model(x), plain(x))
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
