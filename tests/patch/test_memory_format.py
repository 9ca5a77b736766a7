"""`patch(model, memory_format=torch.channels_last)`: weights and inputs converted for the user, and back."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls, Net, assert_as_before, sample, sgd, statuses, trained, twins
from torch import nn

import tritonconv

CHANNELS_LAST = torch.channels_last


def layout(model: nn.Module) -> dict[str, tuple]:
    """Where each tensor is, what it holds and its strides."""
    state = model.state_dict(keep_vars=True)
    return {name: (id(value), value.stride(), value.clone()) for name, value in state.items()}


def assert_layout(model: nn.Module, expected: dict[str, tuple]) -> None:
    for name, (identity, strides, value) in layout(model).items():
        assert (identity, strides) == expected[name][:2], name
        assert torch.equal(value, expected[name][2])


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_runs_as_one_that_was_converted_by_hand(mode):
    _, plain = twins()
    ours = tritonconv.patch(copy.deepcopy(plain), memory_format=CHANNELS_LAST).train(mode)
    plain = plain.to(memory_format=CHANNELS_LAST).train(mode)
    assert [p.stride() for p in ours.parameters()] == [p.stride() for p in plain.parameters()]
    x = sample()
    maps = []
    for model in (ours, plain):
        handle = model.pool.register_forward_hook(lambda module, args, y: maps.append((*args, y)))
        with torch.no_grad():
            model(x.to(memory_format=CHANNELS_LAST) if model is plain else x)
        handle.remove()
    for got, want in zip(*maps, strict=True):
        torch.testing.assert_close(got, want, check_stride=True)
    assert_as_before(ours)


def test_unpatch_gives_everything_its_memory_back():
    model = Net()
    model.register_buffer("table", torch.randn(2, 3, 4, 5))
    model.head.weight.data = torch.randn(3, 8, 1, 1)[:, ::2]  # neither the one format nor the other
    model.conv.weight.data = model.conv.weight.data.to(memory_format=CHANNELS_LAST)
    before = layout(model)
    tritonconv.patch(model, memory_format=CHANNELS_LAST)
    assert model.stem[0].weight.is_contiguous(memory_format=CHANNELS_LAST)
    assert model.table.is_contiguous(memory_format=CHANNELS_LAST)
    assert_layout(tritonconv.unpatch(model), before)
    tritonconv.patch(model, memory_format=CHANNELS_LAST)
    assert_layout(tritonconv.unpatch(tritonconv.patch(model)), before)
    with tritonconv.patched(model, memory_format=CHANNELS_LAST):
        pass
    assert_layout(model, before)


def test_patched_within_a_converted_model_and_the_other_way_round():
    model = tritonconv.patch(Net(), memory_format=CHANNELS_LAST)
    before = layout(model)
    with tritonconv.patched(model):
        assert model.conv.weight.is_contiguous()
    assert_layout(model, before)
    assert not tritonconv.unpatch(model).conv.weight.is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("shape", [(2, 7, 6, 6), SIZE])
def test_a_patch_that_fails_changes_no_memory(shape, monkeypatch):
    monkeypatch.setattr("tritonconv.patching.trial.compare", lambda *args: 1 / 0)
    model = Net()
    before = layout(model)
    with pytest.raises((ValueError, ZeroDivisionError)):
        tritonconv.patch(model, torch.ones(shape), memory_format=CHANNELS_LAST, when="always")
    assert_layout(model, before)


def test_an_optimizer_made_before_trains_on_and_so_it_does_after_unpatching():
    patched, plain = twins()
    ours, theirs = sgd(patched), sgd(plain)
    for change in (
        tritonconv.unpatch,
        lambda model: tritonconv.patch(model, memory_format=CHANNELS_LAST),
        tritonconv.unpatch,
    ):
        torch.testing.assert_close(trained(change(patched), ours), trained(plain, theirs))


def test_inputs_by_name_of_other_dimensions_and_within_lists():
    def forward(m, x, scale, more=()):
        assert all(y.is_contiguous(memory_format=CHANNELS_LAST) for y in (x, *more))
        return F.relu(m.conv(x + sum(more)) * scale)

    class Two(Calls):
        def forward(self, x, scale, more=()):
            return forward(self, x, scale, more)

    model = tritonconv.patch(Two(None), memory_format=CHANNELS_LAST)
    x, scale = torch.randn(SIZE), torch.randn(2, 1, 1)
    torch.testing.assert_close(model(x=x, scale=scale), model(x, scale))
    torch.testing.assert_close(model(x, scale, more=[x]), model(2 * x, scale))


def test_a_single_layer():
    conv = nn.Conv2d(2, 3, 3)
    tritonconv.patch(conv, sample := torch.randn(SIZE), memory_format=CHANNELS_LAST, when="always")
    assert statuses(conv) == {"": "swapped conv2d"}
    assert conv(sample).is_contiguous(memory_format=CHANNELS_LAST)


def test_copies_keep_the_format_and_unpatch_by_themselves():
    model = tritonconv.patch(Net(), memory_format=CHANNELS_LAST)
    twin = copy.deepcopy(model)
    tritonconv.unpatch(model)
    assert twin.conv.weight.is_contiguous(memory_format=CHANNELS_LAST)
    assert tritonconv.unpatch(twin).conv.weight.is_contiguous()
    assert type(pickle.loads(pickle.dumps(tritonconv.patch(model, memory_format=CHANNELS_LAST)))) is Net


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1))
    model[1].weight = model[0].weight
    tritonconv.patch(model, memory_format=CHANNELS_LAST)
    assert model[1].weight is model[0].weight
    assert_as_before(model)
    tritonconv.unpatch(model)
    assert model[1].weight is model[0].weight
    assert model[0].weight.is_contiguous()
