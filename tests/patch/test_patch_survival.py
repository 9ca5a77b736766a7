"""What may happen to a patched model afterwards: hooks, copies, pickles, parametrizations, replaced children."""

import abc
import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls, assert_as_before, statuses, vgg_like
from torch import nn

import tritonconv


def relu_of_conv(m, x):
    return F.relu(m.conv(x))


def block():
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())


HOOKS = {
    "forward": lambda module, see: module.register_forward_hook(lambda m, x, y: see(y)),
    "forward_pre": lambda module, see: module.register_forward_pre_hook(lambda m, x: see(x[0])),
    "full_backward": lambda module, see: module.register_full_backward_hook(lambda m, gx, gy: see(gy[0])),
    "full_backward_pre": lambda module, see: module.register_full_backward_pre_hook(lambda m, gy: see(gy[0])),
    "global": lambda module, see: nn.modules.module.register_module_forward_hook(lambda m, x, y: see(y)),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_sees_what_it_would_see_in_the_unpatched_model(kind, member, when, kernel_calls):
    model, x, seen = block(), torch.randn(SIZE), []
    if when == "after":
        tritonconv.patch(model)
    handle = HOOKS[kind](model[member], lambda value: seen.append(value.detach().clone()))
    try:
        if when == "before":
            tritonconv.patch(model)
        (site,) = tritonconv.report(model)
        assert (site.fqn, site.status) == ("0", "swapped")
        assert "hook" in site.reason
        x.requires_grad_()
        model(x).sum().backward()
        assert kernel_calls == ["conv2d"]
        got = seen.copy()
        seen.clear()
        tritonconv.unpatch(model)(x).sum().backward()
    finally:
        handle.remove()
    assert got
    torch.testing.assert_close(got, seen)


def test_a_hook_that_is_removed_lets_the_fused_kernel_run_again(kernel_calls):
    model = tritonconv.patch(block())
    handle = model[1].register_forward_hook(lambda m, x, y: None)
    model(torch.randn(SIZE))
    handle.remove()
    model(torch.randn(SIZE))
    assert kernel_calls == ["conv2d", "conv2d+relu"]
    assert statuses(model) == {"0": "fused conv2d+relu"}


def test_a_deepcopy_stays_patched_with_weights_of_its_own(kernel_calls):
    model = tritonconv.patch(vgg_like())
    twin = copy.deepcopy(model)
    assert tritonconv.report(twin) == tritonconv.report(model)
    x = torch.randn(SIZE)
    torch.testing.assert_close(twin(x), model(x))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    kernel_calls.clear()
    assert not torch.allclose(twin(x), model(x))
    assert sum(call.startswith("conv2d+relu") for call in kernel_calls) == 6
    assert_as_before(model)
    assert_as_before(twin)


def test_a_deepcopy_of_a_module_that_knows_its_parent():
    model = Calls(relu_of_conv)
    model.conv.parent = [model]
    twin = copy.deepcopy(tritonconv.patch(model))
    assert twin.conv.parent[0] is twin
    assert type(twin) is type(model)


def test_averaged_models_work():
    model = tritonconv.patch(vgg_like())
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    x = torch.randn(SIZE)
    torch.testing.assert_close(averaged(x), model(x))


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("roundtrip", [pickled, saved, copy.copy])
def test_what_is_saved_is_the_original(roundtrip):
    model = tritonconv.patch(vgg_like())
    loaded = roundtrip(model)
    assert type(loaded) is nn.Sequential
    assert vars(loaded).keys() == vars(vgg_like()).keys()
    x = torch.randn(SIZE)
    torch.testing.assert_close(loaded(x), model(x))
    assert_as_before(tritonconv.patch(loaded))


def test_what_is_saved_loads_where_tritonconv_is_absent(tmp_path):
    torch.save(tritonconv.patch(vgg_like()), tmp_path / "model.pt")
    program = (
        "import sys, torch; sys.modules['tritonconv'] = None; "
        f"print(type(torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)[0][0]).__name__)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "Conv2d\n"


class Stateful(nn.Conv2d):
    """Its saved state is its own affair."""

    def __getstate__(self):
        return {**self.__dict__, "saved": True}


def test_a_class_with_a_state_of_its_own_is_saved_its_own_way():
    model = nn.Sequential(Stateful(2, 2, 1), nn.Conv2d(2, 2, 1))
    assert pickled(tritonconv.patch(model))[0].saved


def test_a_parametrization_after_patching_takes_effect_and_survives_unpatching():
    model = tritonconv.patch(block())
    nn.utils.parametrizations.weight_norm(model[0])
    x = torch.randn(SIZE)
    got = model(x)
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(2)
    assert not torch.allclose(model(x), got)
    after = model(x)
    tritonconv.unpatch(model)
    torch.testing.assert_close(model(x), after)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    torch.testing.assert_close(tritonconv.unpatch(model)(x), after)
    assert type(model[0]) is nn.Conv2d


@pytest.mark.filterwarnings("ignore:patch. none of the 1 sites")
@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "0", nn.Conv2d(2, 3, 1)),
        lambda model: setattr(model, "0", nn.Sequential(nn.Conv2d(2, 3, 1), nn.Dropout(0.0))),
        lambda model: setattr(model, "1", nn.Tanh()),
        lambda model: model.append(nn.Conv2d(2, 2, 1)),
        lambda model: model.pop(1),
        lambda model: setattr(model[0], "padding", (0, 0)),
        lambda model: setattr(model[0], "padding_mode", "circular"),
    ],
)
def test_a_changed_model_computes_what_it_says_now(change):
    model = tritonconv.patch(block())
    change(model)
    assert_as_before(model)
    assert str(tritonconv.report(model))
    assert_as_before(tritonconv.patch(model))


def test_a_new_head_after_patching_is_said_to_cost_what_was_fused_beside_it(kernel_calls):
    model = tritonconv.patch(nn.Sequential(block(), *block(), nn.Conv2d(2, 3, 1)))
    model[3] = nn.Conv2d(2, 5, 1)
    assert statuses(model) == {"0.0": "fused conv2d+relu", "1": "swapped conv2d+relu", "3": "swapped conv2d"}
    (_, site, _) = tritonconv.report(model)
    assert site.reason.endswith("a module of the same forward was replaced; patch again")
    kernel_calls.clear()
    model(torch.randn(SIZE))
    assert kernel_calls == ["conv2d+relu", "conv2d"]
    assert statuses(tritonconv.patch(model))["1"] == "fused conv2d+relu"


def test_loading_and_training_after_patching(kernel_calls):
    torch.manual_seed(0)
    model = tritonconv.patch(vgg_like()).double()
    plain = vgg_like().double()
    plain.load_state_dict(model.state_dict())
    x, target = torch.randn(SIZE, dtype=torch.float64), torch.tensor([0, 2])
    for network in (plain, model):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(network(x), target).backward()
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_tied_weights_and_shared_modules():
    tied = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
    tied[2].weight = tied[0].weight
    model = tritonconv.patch(tied)
    assert model[2].weight is model[0].weight
    assert_as_before(model)

    shared = nn.Conv2d(2, 2, 3, padding=1)
    model = tritonconv.patch(nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared), shared))
    assert_as_before(model)
    tritonconv.unpatch(model)
    assert type(shared) is nn.Conv2d


def test_nan_passes_through_as_in_torch():
    x = torch.randn(SIZE, dtype=torch.float64)
    x[0, 0, 2, 3] = float("nan")
    model = tritonconv.patch(nn.Sequential(*block(), nn.MaxPool2d(2))).double()
    got = model(x)
    assert got.isnan().any()
    torch.testing.assert_close(got, tritonconv.unpatch(model)(x), equal_nan=True)


def test_frozen_parameters_and_no_grad():
    model = tritonconv.patch(vgg_like())
    model[0].requires_grad_(False)
    model(torch.randn(SIZE)).sum().backward()
    assert model[0][0].weight.grad is None
    assert model[3].weight.grad is not None
    with torch.no_grad():
        assert not model(torch.randn(SIZE)).requires_grad


def test_classes_with_a_registry_or_a_metaclass():
    registry = []

    class Registered(Calls, abc.ABC):
        def __init_subclass__(cls, **options):
            registry.append(cls)

    model = tritonconv.patch(Registered(relu_of_conv))
    assert statuses(model) == {"conv": "fused conv2d+relu"}
    assert registry == []
    assert_as_before(model)


def test_a_patched_model_can_be_traced_by_fx_and_a_traced_one_patched(kernel_calls):
    model = tritonconv.patch(vgg_like())
    x = torch.randn(SIZE)
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(graph(x), model(x))

    graph = torch.fx.symbolic_trace(vgg_like())
    tritonconv.patch(graph)
    assert sorted(statuses(graph).values()) == [
        *("fused conv2d+relu", "fused conv2d+relu", "fused conv2d+relu+max_pool2d"),
        *("swapped conv2d", "swapped linear", "swapped max_pool2d"),
    ]
    assert_as_before(graph)


def test_print_shows_what_is_patched():
    text = repr(tritonconv.patch(block()))
    assert "PatchedSequential(" in text
    assert "(0): PatchedConv2d(2, 2, kernel_size=(3, 3)" in text
    assert "(1): ReLU()" in text
