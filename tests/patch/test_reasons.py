"""Why torch runs what it does: every convolution, pooling, norm and activation that no kernel runs has a reason."""

import json

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls, statuses
from torch import nn

import tritonconv
from tritonconv import choice

ON_CPUS = choice._ON_CPUS  # which tests do without, otherwise


def rest(model):
    return {site.fqn: site.reason for site in tritonconv.report(model).rest}


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


NORM, RELU = nn.BatchNorm2d(2), nn.ReLU()
FORMS = {
    "an activation of a sum": (lambda m, x: m.it(m.conv(x) * 2), RELU, "not fused: it follows mul"),
    "of an input": (lambda m, x: m.conv(m.it(x)), RELU, "not fused: it follows an input"),
    "of a norm without a kernel": (lambda m, x: m.it(m.norm(x)) + m.conv(x), RELU, "not fused: it follows LayerNorm"),
    "of what others read": (
        lambda m, x: m.it(y := m.conv(x)) + y,
        RELU,
        "activation not fused: the value before it is used elsewhere too",
    ),
    "without a kernel": (lambda m, x: m.it(m.conv(x)), nn.Softplus(), "no kernel computes it"),
    "hooked": (lambda m, x: m.it(m.conv(x)), hooked(nn.ReLU()), "a hook wants its input or output"),
    "a norm before a convolution": (lambda m, x: m.conv(m.it(x)), NORM, "not fused: it follows an input"),
    "a norm after an activation": (
        lambda m, x: m.it(F.relu(m.conv(x) + x)),
        NORM,
        "batch norm not fused: it comes after the activation",
    ),
    "a norm without a kernel": (lambda m, x: m.it(m.conv(x)), nn.LayerNorm(2), "no kernel computes it"),
    "a norm without weights": (
        lambda m, x: m.it(m.conv(x)),
        nn.LazyBatchNorm2d(),
        "it has no weights before its first call: run the model once, then patch it, or give patch a sample",
    ),
    "a norm that is parametrized": (
        lambda m, x: m.it(m.conv(x)),
        nn.utils.parametrizations.spectral_norm(nn.BatchNorm1d(2)),
        "it is parametrized: a kernel's weight is packed once, not at every call",
    ),
    "never called": (lambda m, x: m.conv(x), RELU, "no forward that could be traced calls it"),
    "in a forward that branches on values": (
        lambda m, x: m.it(m.conv(x)) if x.sum() > 0 else x,
        RELU,
        "nothing fused: Calls.forward cannot be traced: it branches on gt",
    ),
    "in a forward that iterates over as many values as there are": (
        lambda m, x: torch.cat([m.it(m.conv(part)) for part in x.split(1)]),
        RELU,
        "nothing fused: Calls.forward cannot be traced: it iterates over split",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_is_in_no_site_says_why(form):
    forward, module, reason = FORMS[form]
    model = Calls(forward, it=module, **{"norm": nn.LayerNorm(2)} if "LayerNorm" in reason else {})
    assert rest(tritonconv.patch(model))["it"].startswith(reason)
    assert "it" not in statuses(model)


def test_the_rest_is_in_the_table_and_in_json_and_no_failure_under_strict():
    model = tritonconv.patch(nn.Sequential(nn.Conv2d(2, 2, 1), nn.LayerNorm(2), nn.Tanh()), strict=True)
    report = tritonconv.report(model)
    assert "2 norms and activations by themselves" in str(report)
    assert [site["fqn"] for site in json.loads(report.to_json())["rest"]] == ["1", "2"]
    whole = tritonconv.patch(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Tanh()))
    assert rest(whole) == {}
    assert "themselves" not in str(tritonconv.report(whole))


def test_convolutions_and_poolings_without_a_kernel_are_sites_that_are_left():
    def network():
        return nn.Sequential(
            nn.Conv3d(1, 1, 1), nn.ReLU(), nn.Sequential(nn.FractionalMaxPool2d(2, 1)), nn.Linear(2, 2)
        )

    with pytest.warns(UserWarning, match=r"none of the 2 sites of Sequential is patched; report\(model\) says why"):
        model = tritonconv.patch(network())
    assert statuses(model) == {"0": "left Conv3d", "2.0": "left FractionalMaxPool2d"}
    assert rest(model) == {"1": "no convolution here runs in a kernel"}
    with pytest.raises(ValueError, match=r"2 of 2 sites of Sequential(?s:.*)0 \(Conv3d\): no kernel computes it"):
        tritonconv.patch(network(), strict=True)
    with pytest.warns(UserWarning, match="none of the 2 sites"):
        tritonconv.patch(network(), strict=True, exclude="*")


POOLS = {
    nn.MaxPool2d(2): "on CPUs torch runs small ones, unless tuning finds the kernel faster",
    nn.AdaptiveAvgPool2d(1): "on CPUs torch runs it, unless tuning finds the kernel faster",
    nn.AvgPool2d(2): "on CPUs torch runs small ones, and those in channels_last memory, unless tuning finds",
    nn.LPPool2d(2, 2): "",
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_pooling_that_is_left_by_its_size_says_so(pool, monkeypatch):
    monkeypatch.setattr(choice, "_ON_CPUS", ON_CPUS)
    model = nn.Sequential(pool, nn.Conv2d(2, 2, 1)).eval()
    step, _ = tritonconv.plan(model, torch.rand(SIZE))
    layer, _ = tritonconv.summary(model, torch.rand(SIZE))
    refusal = "torch is faster at this size, unless tuning finds otherwise" if POOLS[pool] else ""
    assert step.reason == layer.refusal == refusal
    site, _ = tritonconv.report(tritonconv.patch(model))
    assert site.reason.startswith(POOLS[pool])
    assert bool(site.reason) == bool(POOLS[pool])
