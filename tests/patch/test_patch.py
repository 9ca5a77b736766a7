"""The contract of `patch`, `unpatch`, `patched` and `report` on models where everything can be patched."""

import json

import pytest
import torch
from networks import SIZE, assert_as_before, statuses, vgg_like
from torch import nn

import tritonconv

VGG_SITES = {
    "0.0": "fused conv2d+relu",
    "0.2": "fused conv2d+relu+max_pool2d",
    "2.0": "fused conv2d+relu",
    "2.2": "swapped max_pool2d",
    "3": "swapped conv2d",
    "5": "swapped linear",
}
VGG_CALLS = ["conv2d+relu", "conv2d+relu+max_pool2d", "conv2d+relu", "max_pool2d", "conv2d"]  # of two images


def state(model):
    """Everything about a model that patching must not change: classes, attributes and the identity of every value."""
    return [(name, type(module), {k: id(v) for k, v in vars(module).items()}) for name, module in model.named_modules()]


def test_a_vgg_like_stack_computes_the_same_and_every_site_is_listed(kernel_calls):
    model = tritonconv.patch(vgg_like())
    assert statuses(model) == VGG_SITES
    assert_as_before(model)
    assert kernel_calls == VGG_CALLS


def test_patching_is_in_place_and_touches_no_parameter_key_or_name():
    model = vgg_like()
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    keys, names = list(model.state_dict()), [name for name, _ in model.named_modules()]
    assert tritonconv.patch(model) is model
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == names
    assert isinstance(model[3], nn.Conv2d)


def test_checkpoints_load_both_ways():
    plain, model = vgg_like(), tritonconv.patch(vgg_like())
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert all(map(torch.equal, plain.state_dict().values(), model.state_dict().values()))


def test_unpatch_restores_exactly_what_was_there():
    model = vgg_like()
    before = state(model)
    assert tritonconv.unpatch(tritonconv.patch(model)) is model
    assert state(model) == before
    assert state(tritonconv.unpatch(model)) == before


def test_patching_twice_is_patching_once(kernel_calls):
    model = vgg_like()
    before = state(model)
    tritonconv.patch(tritonconv.patch(model))
    assert statuses(model) == VGG_SITES
    model(torch.randn(SIZE))
    assert kernel_calls == VGG_CALLS
    assert state(tritonconv.unpatch(model)) == before


def test_patching_again_starts_over_with_the_new_choice():
    model = tritonconv.patch(vgg_like(), exclude="0.*")
    tritonconv.patch(model, exclude="2.*")
    assert statuses(model)["0.0"] == "fused conv2d+relu"
    assert statuses(model)["2.0"] == "left conv2d"


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ({"include": "0.*"}, {"1", "2.0", "2.2", "3", "5"}),
        ({"include": ["0.*", "1"], "exclude": ("0.2",)}, {"0.2", "2.0", "2.2", "3", "5"}),
        ({"exclude": "*.0"}, {"0.0", "2.0"}),
        ({"filter_fn": lambda fqn, module: isinstance(module, nn.Conv2d)}, {"1", "2.2", "5"}),
        ({"filter_fn": lambda fqn, module: fqn != "3", "exclude": "1"}, {"1", "3"}),
    ],
)
def test_the_choice_of_sites(choice, left):
    model = tritonconv.patch(vgg_like(), strict=True, **choice)  # what was excluded is no failure
    assert {site.fqn for site in tritonconv.report(model) if site.status == "left"} == left
    assert {site.reason for site in tritonconv.report(model) if site.status == "left"} == {"excluded"}
    assert_as_before(model)


def test_patched_patches_within_its_block_only(kernel_calls):
    model = vgg_like()
    before = state(model)
    with tritonconv.patched(model, exclude="3") as inside:
        assert inside is model
        model(torch.randn(SIZE))
        assert kernel_calls == VGG_CALLS[:-1]
    assert state(model) == before
    with pytest.raises(ZeroDivisionError), tritonconv.patched(model):
        raise ZeroDivisionError
    assert state(model) == before


def test_patched_puts_back_an_earlier_patch():
    model = tritonconv.patch(vgg_like(), exclude="3")
    before = state(model)
    with tritonconv.patched(model):
        assert statuses(model) == VGG_SITES
    assert state(model) == before
    assert_as_before(model)


@pytest.mark.parametrize(("model", "pattern"), [(nn.Conv2d(2, 3, 3), "conv2d"), (nn.MaxPool2d(2), "max_pool2d")])
def test_a_model_may_be_a_single_layer(model, pattern, kernel_calls):
    tritonconv.patch(model, strict=True)
    assert statuses(model) == {"": f"swapped {pattern}"}
    assert_as_before(model)
    assert kernel_calls == [pattern]


def test_bad_input_raises_what_torch_raises():
    model = vgg_like()
    x = torch.randn(SIZE)
    for bad in (x[:, :1], x[0, 0, 0], x.double(), x.long()):
        with pytest.raises(RuntimeError) as expected:
            model(bad)
        with tritonconv.patched(model), pytest.raises(RuntimeError) as got:
            model(bad)
        assert str(got.value) == str(expected.value)


def test_the_report_is_a_table_and_json():
    model = tritonconv.patch(vgg_like(), exclude="3")
    report = tritonconv.report(model)
    text = str(report)
    for site in report:
        assert any({site.fqn, site.pattern, site.status} <= set(line.split()) for line in text.splitlines())
    loaded = json.loads(report.to_json())
    assert loaded["model"] == "Sequential"
    assert [site["fqn"] for site in loaded["sites"]] == list(VGG_SITES)
    assert loaded["sites"][0] == {
        "fqn": "0.0",
        "pattern": "conv2d+relu",
        "status": "fused",
        "reason": "",
        "members": ["0.0", "0.1"],
    }
    assert loaded["sites"][-2]["reason"] == "excluded"


def test_there_is_no_report_of_what_was_not_patched():
    model = vgg_like()
    with pytest.raises(ValueError, match="Sequential was not given to tritonconv.patch"):
        tritonconv.report(model)
    tritonconv.patch(model)
    with pytest.raises(ValueError, match="Sequential was not given to tritonconv.patch"):
        tritonconv.report(model[0])


def test_a_model_without_sites_is_warned_about_and_refused_by_strict():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.warns(
        UserWarning, match="none of the 0 sites of Sequential is patched; it holds no convolution"
    ) as caught:
        assert tritonconv.patch(model) is model
    assert caught[0].filename == __file__
    assert len(tritonconv.report(model)) == 0
    with pytest.raises(ValueError, match="Sequential has no site: it holds no convolution and no pooling"):
        tritonconv.patch(model, strict=True)


def test_strict_names_every_site_that_stays_on_torch_and_changes_nothing():
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding_mode="circular"),
        nn.Conv2d(2, 2, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)),
    )
    before = state(model)
    with pytest.raises(ValueError) as error:
        tritonconv.patch(model, strict=True)
    assert str(error.value).splitlines() == [
        "patch: 2 of 3 sites of Sequential cannot be patched",
        "  0 (conv2d): padding_mode is 'circular'; only 'zeros' is supported",
        "  2 (conv2d): it is parametrized: a kernel's weight is packed once, not at every call",
    ]
    assert state(model) == before


@pytest.mark.parametrize(
    ("wrap", "name"),
    [(nn.DataParallel, "DataParallel"), (torch.compile, "torch.compile"), (torch.jit.script, "torch.jit")],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_a_wrapped_model_is_refused(wrap, name):
    with pytest.raises(TypeError, match=f"got it wrapped by {name}: patch first, then wrap"):
        tritonconv.patch(wrap(vgg_like()))
