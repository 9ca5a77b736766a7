"""Whatever has changed since a call was recorded, later ones give what torch gives."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import sample
from replays import CALLS, CHANGES, SIZES, assert_alike, fixed, replayed, shaping, twins
from torch import nn

import tritonconv
from tritonconv.blocks.modules import LEAVES
from tritonconv.replay import guard


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory as torch gives it: what fills it would stand between the launches."""


@pytest.mark.parametrize("change", [
    lambda m: setattr(m[4], "start_dim", 2),
    lambda m: setattr(m[4], "forward", lambda x: x.flatten(1) + 1),
    lambda m: (m[2].train(), setattr(m[2], "p", 1.0)),
    lambda m: m[2].register_forward_hook(lambda module, args, y: y + 1),
])  # fmt: skip
def test_a_change_of_what_gives_another_shape(change):
    plain = nn.Sequential(*shaping()[:5])
    patched, x = tritonconv.patch(copy.deepcopy(plain)), torch.randn(1, 2, 6, 6).to(memory_format=torch.channels_last)
    assert_alike(patched, plain, x)
    assert replayed(patched)
    for model in (patched, plain):
        change(model)
    assert_alike(patched, plain, x)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model(change):
    patched, plain = twins()
    assert_alike(patched, plain, sample())
    before = replayed(patched)
    assert before
    for model in (patched, plain):
        fixed(model, change)
    if change in ("training", "statistics of the batch"):  # every call counts
        with torch.no_grad():
            for _ in range(2 * CALLS):
                torch.testing.assert_close(patched(sample()), plain(sample()))
        torch.testing.assert_close(patched.state_dict(), plain.state_dict())
    else:
        assert_alike(patched, plain, sample(), calls=2 * CALLS)


@pytest.mark.parametrize("change", [change for change in CHANGES if "weight" in change])
def test_a_change_of_one_of_many_weights(change, monkeypatch):
    """They are looked at together."""
    monkeypatch.setattr(guard, "_MANY", 0)
    test_a_change_of_the_model(change)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
AT_ANY_TIME = [change for change in CHANGES if change.split()[-1] in ("place", "counter", "memory", "state", "while")]
ACTIONS = st.one_of(
    st.tuples(st.just("change"), st.sampled_from([*AT_ANY_TIME, "another weight", "eps", "dilation", "channels_last"])),
    *[st.tuples(st.just("call"), st.sampled_from(SIZES[:3]), st.sampled_from(list(MODES)))] * 4,
)


@settings(max_examples=12, deadline=None)
@given(st.lists(ACTIONS, min_size=6, max_size=16))
def test_any_sequence_of_calls_and_changes(actions):
    patched, plain = twins()
    assert_alike(patched, plain, sample())
    for kind, *what in actions:
        if kind == "change":
            (change,) = what
            for model in (patched, plain):
                fixed(model, change)
            continue
        size, mode = what
        x = torch.randn(size, dtype=torch.float64)
        for _ in range(3):
            with MODES[mode]():
                got, want = patched(x), plain(x)
                torch.testing.assert_close(got, want)
                assert [y.is_inference() for y in got] == [y.is_inference() for y in want]


def example(kind: type) -> tuple[nn.Module, torch.Tensor]:
    rows = nn.Conv1d, nn.BatchNorm1d, nn.InstanceNorm1d
    given = {
        **dict.fromkeys((nn.Conv1d, nn.Conv2d), (3, 3, 1)),
        **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d, nn.InstanceNorm2d), (3,)),
        nn.GroupNorm: (1, 3),
        nn.Linear: (5, 2),
    }
    module = kind(*given.get(kind, ()))
    return module, torch.randn((2, 3, 5) if kind in rows else (2, 3, 5, 5))


@pytest.mark.parametrize("kind", guard.READ)
def test_a_guard_looks_at_all_settings_that_a_forward_reads(kind):
    module, x = example(kind)
    read = set()

    class Spied(kind):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    settings = {name for name in vars(module) if not name.startswith("_")}
    module.__class__ = Spied
    for mode in (True, False):
        module.train(mode)
        read.clear()
        module(x)
        if kind in LEAVES:
            LEAVES[kind](module, x)
        assert read & settings <= {*guard.READ[kind]}
        assert {*guard.READ[kind]} <= settings
