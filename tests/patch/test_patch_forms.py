"""Which patterns `patch` finds in a forward, and that what it cannot vouch for keeps computing what it did."""

import copy
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls, assert_as_before, statuses
from torch import nn

import tritonconv
from tritonconv.capture import through
from tritonconv.capture.trace import traces

RELU_FORMS = {
    "module": lambda m, x: m.act(m.conv(x)),
    "F.relu": lambda m, x: F.relu(m.conv(x)),
    "F.relu inplace": lambda m, x: F.relu(m.conv(x), inplace=True),
    "F.relu keyword": lambda m, x: F.relu(input=m.conv(input=x)),
    "torch.relu": lambda m, x: torch.relu(m.conv(x)),
    "torch.relu_": lambda m, x: torch.relu_(m.conv(x)),
    "Tensor.relu": lambda m, x: m.conv(x).relu(),
    "Tensor.relu_": lambda m, x: m.conv(x).relu_(),
}


@pytest.mark.parametrize("form", RELU_FORMS)
def test_every_form_of_relu_is_fused(form, kernel_calls):
    model = tritonconv.patch(Calls(RELU_FORMS[form], act=nn.ReLU(inplace=True)))
    assert statuses(model) == {"conv": "fused conv2d+relu"}
    assert_as_before(model)
    assert kernel_calls == ["conv2d+relu"]


POOL_FORMS = {
    "module": lambda m, x: m.pool(m.conv(x)),
    "F": lambda m, x: F.max_pool2d(m.conv(x), 3, 2, padding=1, ceil_mode=True),
    "F with indices": lambda m, x: F.max_pool2d(m.conv(x), 2, return_indices=True),
    "F.max_pool2d_with_indices": lambda m, x: F.max_pool2d_with_indices(m.conv(x), 2),
    "torch": lambda m, x: torch.max_pool2d(m.conv(x), 2, 1, 1, 1, True),
}


@pytest.mark.parametrize("form", POOL_FORMS)
def test_every_form_of_max_pooling_is_swapped(form, kernel_calls):
    children = {"pool": nn.MaxPool2d(2, return_indices=True)} if form == "module" else {}
    model = tritonconv.patch(Calls(POOL_FORMS[form], **children))
    assert sorted(statuses(model).values()) == ["swapped conv2d", "swapped max_pool2d"]
    assert_as_before(model)
    assert kernel_calls == ["conv2d", "max_pool2d"]


OTHER_POOLINGS = {
    "avg_pool2d": (nn.AvgPool2d(2), lambda m, x: F.avg_pool2d(m.conv(x), 3, 2, padding=1)),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((1, 4)), lambda m, x: F.adaptive_avg_pool2d(m.conv(x), output_size=4)),
    "adaptive_max_pool2d": (
        nn.AdaptiveMaxPool2d(4, return_indices=True),
        lambda m, x: F.adaptive_max_pool2d_with_indices(m.conv(x), 4),
    ),
    "lp_pool2d": (nn.LPPool2d(2, 3), lambda m, x: F.lp_pool2d(m.conv(x), 2, 3, stride=1)),
}


@pytest.mark.parametrize("form", ("module", "function"))
@pytest.mark.parametrize("pattern", OTHER_POOLINGS)
def test_other_poolings_are_swapped(pattern, form, kernel_calls):
    pool, function = OTHER_POOLINGS[pattern]
    model = Calls(lambda m, x: m.pool(m.conv(x)), pool=pool) if form == "module" else Calls(function)
    tritonconv.patch(model)
    assert sorted(statuses(model).values()) == sorted(["swapped conv2d", f"swapped {pattern}"])
    assert_as_before(model)
    assert kernel_calls == ["conv2d", pattern]


@pytest.mark.parametrize("form", ("module", "function"))
def test_unpooling_is_swapped(form, kernel_calls):
    def forward(m, x):
        y, indices = F.max_pool2d(m.conv(x), 2, return_indices=True)
        if form == "module":
            return m.unpool(y, indices, output_size=x.size())
        return F.max_unpool2d(y, indices, 2, output_size=x.size())

    model = tritonconv.patch(Calls(forward, unpool=nn.MaxUnpool2d(2)))
    assert_as_before(model, torch.randn(2, 2, 7, 6, dtype=torch.float64))
    assert kernel_calls == ["conv2d", "max_pool2d", "max_unpool2d"]


def test_a_function_call_is_named_after_its_caller_and_can_be_excluded(kernel_calls):
    model = nn.Sequential(Calls(lambda m, x: F.max_pool2d(F.relu(m.conv(F.max_pool2d(x, 1))), 2)))
    tritonconv.patch(model, exclude="0.max_pool2d_1")
    assert list(statuses(model).items()) == [
        ("0.max_pool2d", "swapped max_pool2d"),
        ("0.conv", "fused conv2d+relu"),
        ("0.max_pool2d_1", "left max_pool2d"),
    ]
    assert_as_before(model)
    assert kernel_calls == ["max_pool2d", "conv2d+relu"]


UNFUSABLE = {
    "output also returned": lambda m, x: (y := m.conv(x), F.relu(y)),
    "output used twice": lambda m, x: F.relu(y := m.conv(x)) + y,
    "a number added": lambda m, x: F.relu(m.conv(x) + 1),
    "an activation without a kernel": lambda m, x: F.softplus(m.conv(x)),
    "a slope that hides the sign": lambda m, x: F.leaky_relu(m.conv(x), -0.5),
    "a view between": lambda m, x: F.relu(m.conv(x).flatten(1)),
}


@pytest.mark.parametrize("form", UNFUSABLE)
def test_relu_is_fused_only_where_nobody_sees_the_value_between(form, kernel_calls):
    model = tritonconv.patch(Calls(UNFUSABLE[form]))
    assert statuses(model) == {"conv": "swapped conv2d"}
    assert_as_before(model)
    assert kernel_calls == ["conv2d"]


def sum_of_an_alias(m, x):
    y = z = m.conv(x)
    z += x
    return m.conv(y)


def product_of_an_alias(m, x):
    y = z = 2 * x
    z *= 3
    return m.conv(y)


def difference_of_a_view(m, x):
    y = x + 1
    part = y[:, :1]
    part -= x[:, 1:]
    return m.conv(y)


def quotient_of_an_input(m, x):
    x /= 2
    return m.conv(x)


@pytest.mark.parametrize(
    "forward", [sum_of_an_alias, product_of_an_alias, difference_of_a_view, quotient_of_an_input]
)
def test_who_shares_memory_sees_what_is_done_in_place(forward):
    plain = Calls(forward).double().eval()
    patched = tritonconv.patch(copy.deepcopy(plain))
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            for _ in range(4):  # the third call is recorded
                given = torch.randn(SIZE, dtype=torch.float64)
                x, y = given.clone(), given.clone()
                torch.testing.assert_close(patched(x), plain(y))
                assert torch.equal(x, y)
    if forward is not quotient_of_an_input:  # a leaf that has a gradient may not be overwritten
        assert_as_before(patched)


@pytest.mark.parametrize("activation", [lambda y: F.leaky_relu(y, 0.1), F.elu, F.relu6, F.hardsigmoid])
def test_what_a_kernel_keeps_is_not_overwritten(activation):
    """As torch, which keeps what goes into these."""

    def forward(m, x):
        y = activation(m.conv(x))
        y -= 1
        return m.conv(y)

    model = tritonconv.patch(Calls(forward).to(memory_format=torch.channels_last))
    assert any(site.status == "fused" for site in tritonconv.report(model))
    assert_as_before(model, torch.randn(SIZE, dtype=torch.float64).to(memory_format=torch.channels_last))


def test_a_convolution_and_a_relu_called_several_times(kernel_calls):
    model = Calls(lambda m, x: m.act(m.conv(m.act(m.conv(m.conv(x))) + x)), act=nn.ReLU(inplace=True))
    tritonconv.patch(model)
    assert {(site.fqn, site.status) for site in tritonconv.report(model)} == {("conv", "swapped"), ("conv", "fused")}
    assert_as_before(model)
    assert kernel_calls == ["conv2d", "conv2d+relu", "conv2d+relu"]


def test_the_input_may_be_overwritten_between_convolution_and_relu():
    def forward(m, x):
        x = x * 1
        y = m.conv(x)
        x.mul_(0)
        return F.relu(y) + x

    model = tritonconv.patch(Calls(forward))
    assert statuses(model) == {"conv": "fused conv2d+relu"}
    with torch.no_grad():  # autograd would refuse the overwriting
        x = torch.randn(SIZE)
        torch.testing.assert_close(model(x), tritonconv.unpatch(model)(x))


def test_convolutions_in_lists_of_modules_are_fused_in_the_forward_that_calls_them(kernel_calls):
    def forward(m, x):
        for conv, norm in zip(m.convs, m.norms, strict=True):
            x = F.relu(conv(norm(x)))
        return x

    model = Calls(
        forward, convs=nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(2)), norms=nn.ModuleList([nn.Identity()] * 2)
    )
    tritonconv.patch(model, exclude="conv")
    assert statuses(model) == {"conv": "left conv2d", "convs.0": "fused conv2d+relu", "convs.1": "fused conv2d+relu"}
    assert_as_before(model)
    assert kernel_calls == ["conv2d+relu"] * 2
    model.convs.append(nn.Conv2d(2, 2, 1).double())
    model.norms.append(nn.Identity())
    assert_as_before(model)


def test_a_forward_that_depends_on_training_is_fused_in_both_modes(kernel_calls):
    model = Calls(lambda m, x: F.dropout(F.relu(m.conv(x)), 1.0, m.training) if m.training else F.relu(m.conv(x)) * 2)
    tritonconv.patch(model)
    for mode in (True, False, True):
        assert_as_before(model.train(mode))
    assert kernel_calls == ["conv2d+relu"] * 3


def test_a_forward_that_can_be_traced_in_one_mode_only_is_fused_in_that_mode(kernel_calls):
    model = Calls(lambda m, x: F.relu(m.conv(x)) if m.training or x.sum() > 0 else x)
    tritonconv.patch(model.eval())
    assert model.training is False
    for mode, called in ((True, "conv2d+relu"), (False, "conv2d")):
        kernel_calls.clear()
        assert_as_before(model.train(mode), torch.rand(SIZE, dtype=torch.float64))
        assert kernel_calls == [called]


def test_an_attribute_that_steered_the_trace_may_change(kernel_calls):
    model = Calls(lambda m, x: F.relu(m.conv(x)) * m.scale if m.scale else x)
    model.scale = 2.0
    tritonconv.patch(model)
    for scale, called in ((2.0, ["conv2d+relu"]), (3.0, ["conv2d"]), (0.0, []), (2.0, ["conv2d+relu"])):
        kernel_calls.clear()
        model.scale = scale
        assert_as_before(model)
        assert kernel_calls == called


def test_unusual_inputs_get_the_original_forward(kernel_calls):
    class Skip(Calls):
        def forward(self, x, skip=None):
            y = F.relu(self.conv(x[0] if isinstance(x, list) else x))
            return y if skip is None else y + skip

    model = tritonconv.patch(Skip(None))
    plain = tritonconv.unpatch(Skip(None))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(SIZE)
    for args, kwargs, called in (
        ((x, x), {}, "conv2d+relu"),
        ((x,), {"skip": x}, "conv2d+relu"),
        ((x,), {}, "conv2d+relu"),
        ((x, None), {}, "conv2d"),
        ((x, 1.0), {}, "conv2d"),
        (([x],), {}, "conv2d+relu"),
        (([x], x), {}, "conv2d"),
    ):
        kernel_calls.clear()
        torch.testing.assert_close(model(*args, **kwargs), plain(*args, **kwargs))
        assert kernel_calls == [called]


def check(m, x):
    y = m.conv(x)
    return F.relu(y[0] if isinstance(y, tuple) else y)


def count(m, x):
    m.count = m.count + 1
    return F.relu(m.conv(x)) * m.count


def remember(m, x):
    m.seen.append(x)
    return F.relu(m.conv(x))


def without_gradient(m, x):
    with torch.no_grad():
        y = m.conv(x)
    return F.relu(y) + x


def in_bfloat16(m, x):
    with torch.autocast("cpu"):
        return F.relu(m.conv(x))


UNTRACEABLE = {
    "sets": (count, "it sets 'count'"),
    "appends": (remember, "it changes 'seen', a list"),
    "branches on data": (lambda m, x: F.relu(m.conv(x)) if x.sum() < 1e9 else x, "it branches on lt"),
    "checks a type": (check, "it checks the type of conv"),
    "makes a tensor": (lambda m, x: F.relu(m.conv(x)) + torch.ones(()), "it calls aten.ones"),
    "Python's random": (lambda m, x: F.relu(m.conv(x)) * random.randint(1, 1), "random numbers"),
    "numpy's random": (lambda m, x: F.relu(m.conv(x)) + np.random.rand() // 1, "random numbers"),
    "no_grad": (without_gradient, "gradient mode"),
    "autocast": (in_bfloat16, "autocast"),
    "another dict": (lambda m, x: (OrderedDict(y=F.relu(m.conv(x)))["y"], m.named(OrderedDict(y=x))), "OrderedDict"),
    "a child's state": (lambda m, x: F.relu(m.conv(x)) * len(m.named.seen), "it reads 'seen', a dict of Named"),
}


class Named(nn.Module):
    def forward(self, values):
        return values["y"]


@pytest.mark.parametrize("form", UNTRACEABLE)
def test_a_forward_that_no_trace_can_stand_for_is_left_and_says_why(form, kernel_calls):
    forward, reason = UNTRACEABLE[form]
    model = Calls(forward, named=Named())
    model.count, model.seen, model.named.seen = 0, [], {1: 1}
    patch = tritonconv.patch  # imported at first use, by libraries some of which draw numbers
    random_states = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
    patch(model)
    assert (model.count, model.seen) == (0, [])
    assert random.getstate() == random_states[0]
    assert np.random.get_state()[2] == random_states[1]
    assert torch.equal(torch.get_rng_state(), random_states[2])
    (site,) = tritonconv.report(model)
    assert (site.fqn, site.status) == ("conv", "swapped")
    assert site.reason.startswith("nothing fused: Calls.forward cannot be traced: ")
    assert reason in site.reason
    assert_as_before(model)
    assert set(kernel_calls) == {"conv2d"}


def test_one_untraceable_block_costs_one_block(kernel_calls):
    block = Calls(UNTRACEABLE["branches on data"][0])
    model = nn.Sequential(Calls(RELU_FORMS["F.relu"]), block, nn.Conv2d(2, 2, 1), nn.ReLU())
    tritonconv.patch(model)
    assert statuses(model) == {"0.conv": "fused conv2d+relu", "1.conv": "swapped conv2d", "2": "fused conv2d+relu"}
    assert_as_before(model)


def test_a_scripted_block_is_left_alone():
    block = torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()))
    model = tritonconv.patch(nn.Sequential(block, nn.Conv2d(2, 2, 1)))
    assert statuses(model) == {"1": "swapped conv2d"}
    x = torch.randn(SIZE)
    torch.testing.assert_close(model(x), tritonconv.unpatch(model)(x))


def left_alone():
    class Shifted(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + (1 if x.sum() < 1e9 else 2)

    own = nn.Conv2d(2, 2, 3, padding=1)
    own.forward = lambda x: x * 2
    return {
        "subclass": (Shifted(2, 2, 3, padding=1), "Shifted is a subclass"),
        "parametrized": (
            nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3, padding=1)),
            "it is parametrized: a kernel's weight is packed once, not at every call",
        ),
        "padding_mode": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "padding_mode is 'reflect'"),
        "own forward": (own, "the instance has a forward of its own"),
        "lazy": (nn.LazyConv2d(2, 3, padding=1), "it has no weights before its first call"),
    }


@pytest.mark.parametrize("case", left_alone())
def test_what_is_left_alone(case, kernel_calls):
    conv, reason = left_alone()[case]
    model = nn.Sequential(conv, nn.ReLU()).double()
    with pytest.warns(UserWarning, match="none of the 1 sites of Sequential is patched; report"):
        tritonconv.patch(model)
    (site,) = tritonconv.report(model)
    assert (site.fqn, site.status) == ("0", "left")
    assert reason in site.reason
    x = torch.randn(SIZE, dtype=torch.float64)
    y = model(x)
    assert kernel_calls == []
    assert torch.equal(y, tritonconv.unpatch(model)(x))


class Scaled(nn.Module):
    """Its forward reads an attribute, a parameter that may be missing, and which of its children are the same."""

    def __init__(self, scale=2, bias=True, shared=False):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(2, 2, 1), scale
        self.other = self.conv if shared else nn.Conv2d(2, 2, 1)
        self.register_parameter("bias", nn.Parameter(torch.rand(1)) if bias else None)

    def forward(self, x):
        x = F.relu(self.conv(x)) * self.scale + self.other(x)
        return x if self.bias is None else x + self.bias


@pytest.mark.parametrize("change", ({"scale": 3}, {"scale": 2.0}, {"bias": False}, {"shared": True}), ids=str)
def test_modules_that_are_alike_are_traced_once(change, monkeypatch):
    model = nn.Sequential(Scaled(), Scaled(**change), Scaled(), Scaled(**change))
    traced = []
    monkeypatch.setattr(through, "traces", lambda module, effects: traced.append(module) or traces(module, effects))
    tritonconv.patch(model)
    assert [module for module in traced if isinstance(module, Scaled)] == [model[0], model[1]]
    assert sum(site.pattern == "conv2d+relu" for site in tritonconv.report(model)) == 4
    assert_as_before(model)


def test_what_a_forward_imports_sees_the_true_isinstance(tmp_path, monkeypatch):
    """torch's compiler, imported meanwhile, would know a wrong one for good, and follow no call of the true one."""
    tmp_path.joinpath("kept_isinstance.py").write_text("kept = isinstance\n")
    monkeypatch.syspath_prepend(tmp_path)

    class Importing(nn.Sequential):
        def forward(self, x):
            import kept_isinstance

            seen.append(kept_isinstance.kept)
            return F.relu(self[0](x))

    seen = []
    model = tritonconv.patch(Importing(nn.Conv2d(3, 4, 3)))
    assert [site.pattern for site in tritonconv.report(model).sites] == ["conv2d+relu"]
    assert seen[0] is isinstance
