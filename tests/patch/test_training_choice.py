"""`patch` of a model in training mode with a sample: what torch does faster with gradients it does in training."""

import threading

import pytest
import torch
from torch import nn

import autotune
import tritonconv
from autotune import store
from tritonconv import choice, tuning
from tritonconv.cpu import engine
from tritonconv.patching import training, trial

X = torch.randn(2, 3, 6, 6)


@pytest.fixture(autouse=True)
def timed(monkeypatch, tmp_path):
    """The times of torch and kernels in training, given instead of measured; in inference kernels win."""
    monkeypatch.setattr(trial.Piece, "times", lambda piece, device: [[2.0], [1.0]])
    monkeypatch.setattr(choice, "_noted", {})
    given, asked = {"torch": 0.1, "kernels": 0.1}, []

    def turns(functions, **options):
        for function in functions:
            asked.append(function)
            function()
        return [[0.2, given["torch"]], [0.2, given["kernels"]]]

    monkeypatch.setattr(training, "turns", turns)
    given["asked"] = asked
    tuning.forget()
    with store.at(tmp_path):
        yield given
    tuning.forget()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1))


def launched(model: nn.Module, gradients: bool) -> list[str]:
    """The kernels of a forward."""
    names, mine = [], threading.get_ident()
    engine.watchers[mine] = lambda kernel, launch, tensors: names.append(launch.kernel.__name__)
    try:
        with torch.set_grad_enabled(gradients):
            model.train(gradients)(X)
    finally:
        del engine.watchers[mine]
        model.train()
    return names


@pytest.mark.parametrize("kernels, runs_kernels", ((0.05, True), (0.15, False)))
def test_training_goes_by_times_of_training(timed, kernels, runs_kernels):
    timed["kernels"] = kernels
    model = tritonconv.patch(net(), X)
    assert len(timed["asked"]) == 2 * 3  # two blocks and the pooling, by both
    assert bool(launched(model, gradients=True)) == runs_kernels
    assert launched(model, gradients=False)  # in inference nothing has changed
    plain = net()
    torch.testing.assert_close(model(X), plain(X))
    gradients = (torch.autograd.grad(m(X).sum(), [*m.parameters()]) for m in (model, plain))
    torch.testing.assert_close(next(gradients), next(gradients))


def test_recorded_calls_are_judged_without_what_python_takes(timed):
    timed["kernels"] = timed["torch"] + training._PYTHON / 2
    model = tritonconv.patch(net(), X)
    assert not launched(model, gradients=True)
    with choice.recording():
        assert launched(model, gradients=True)


@pytest.mark.parametrize("options", ({"when": "always"}, {}))
def test_no_training_is_timed_unless_asked_for(timed, options):
    tritonconv.patch(net().train("when" in options), X, **options)
    assert not timed["asked"]


def test_what_is_tuned_holds(timed):
    model = tritonconv.patch(net())
    for key in tuning.problems(model, X):
        if "arguments" in key:
            autotune.record(key, choice.KERNELS, {"how": "measured"})
    timed["kernels"] = 0.15
    tritonconv.patch(model, X)
    assert not timed["asked"]
    assert launched(model, gradients=True)


def test_time_is_limited(timed, monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.1)
    timed["kernels"] = 0.15
    model = tritonconv.patch(net(), X)
    assert len(timed["asked"]) == 2  # the smallest input: the pooling's
    assert launched(model, gradients=True)


def test_a_sample_that_training_does_not_take_is_for_inference_alone(timed):
    norm_of_one_value = nn.Sequential(nn.Conv2d(3, 4, 6), nn.BatchNorm2d(4))
    model = tritonconv.patch(norm_of_one_value, X[:1])
    assert not timed["asked"]
    assert launched(model, gradients=False)
