"""A call in inference that repeats the last one notices whatever has changed since."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls
from torch import nn

import tritonconv
from tritonconv import engines
from tritonconv.blocks import repeat


def forward(m, x):
    return F.relu(m.norm(m.conv(x)) + x)


def pair() -> tuple[nn.Module, nn.Module]:
    """A patched model and a plain one like it, both of which have been called."""
    plain = Calls(forward, norm=nn.BatchNorm2d(2)).double().eval()
    with torch.no_grad():
        plain.norm.running_mean.uniform_(-1, 1)
    return tritonconv.patch(copy.deepcopy(plain)), plain


def assert_alike(patched, plain, x) -> None:
    with torch.no_grad():
        for _ in range(2):
            got, want = patched(x), plain(x)
            torch.testing.assert_close(got, want)
            assert got.stride() == want.stride()


def _assign(path: str, value):
    def change(m):
        *owners, name = path.split(".")
        owner = m.get_submodule(".".join(owners))
        setattr(owner, name, value(getattr(owner, name)) if callable(value) else value)

    return change


def _with(function):
    def change(m):
        with torch.no_grad():
            function(m)

    return change


CHANGES = {
    "nothing": lambda m: None,
    "weight in place": _with(lambda m: m.conv.weight.mul_(2)),
    "weight behind the counter": lambda m: m.conv.weight.data.mul_(2),
    "weight's memory": _with(lambda m: setattr(m.conv.weight, "data", m.conv.weight.data * 2)),
    "another weight": _assign("conv.weight", lambda w: nn.Parameter(w.detach() * 2)),
    "bias in place": _with(lambda m: m.conv.bias.add_(1)),
    "no bias": _assign("conv.bias", None),
    "running mean in place": lambda m: m.norm.running_mean.add_(1),
    "another running variance": _assign("norm.running_var", lambda v: v * 3),
    "eps": _assign("norm.eps", 0.5),
    "gamma": _with(lambda m: m.norm.weight.mul_(3)),
    "batch statistics": lambda m: m.norm.train(),
    "dilation": lambda m: (setattr(m.conv, "dilation", (2, 2)), setattr(m.conv, "padding", (2, 2))),
    "circular padding": _assign("conv.padding_mode", "circular"),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model(change):
    patched, plain = pair()
    x = torch.randn(SIZE, dtype=torch.float64)
    assert_alike(patched, plain, x)
    for model in (patched, plain):
        if change == "circular padding":
            model.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
        CHANGES[change](model)
    assert_alike(patched, plain, x)


INPUTS = {
    "another size": lambda x: x[:1, :, :4],
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "a slice": lambda x: torch.cat((x, x), 3)[..., ::2],
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_change_of_the_input(name):
    patched, plain = pair()
    x = torch.randn(SIZE, dtype=torch.float64)
    assert_alike(patched, plain, x)
    assert_alike(patched, plain, INPUTS[name](x))
    assert_alike(patched, plain, x)


def test_a_change_of_dtype():
    patched, plain = pair()
    x = torch.randn(SIZE, dtype=torch.float64)
    assert_alike(patched, plain, x)
    assert_alike(patched.float(), plain.float(), x.float())
    with pytest.raises(RuntimeError, match="type"):
        assert_alike(patched, plain, x)


def test_autocast_and_gradients_and_a_pinned_engine():
    patched, plain = pair()
    x = torch.randn(SIZE)
    assert_alike(patched.float(), plain.float(), x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert patched(x).dtype is plain(x).dtype
    patched(x).sum().backward()
    assert patched.conv.weight.grad is not None
    with engines.use("interpreter"):
        assert_alike(patched, plain, x)
    assert repeat._last[id(patched.conv)][1].operands[4].name == "interpreter"


def test_what_is_kept_goes_with_the_convolution():
    gc.collect()
    before = len(repeat._last)
    patched, plain = pair()
    assert_alike(patched, plain, torch.randn(SIZE, dtype=torch.float64))
    assert len(repeat._last) == before + 1
    del patched
    gc.collect()
    assert len(repeat._last) == before
