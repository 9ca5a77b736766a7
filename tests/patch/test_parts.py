"""Forwards that iterate over what `chunk`, `split` and the like give: as many times as there are parts."""

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls, assert_as_before, statuses
from torch import nn

import tritonconv


class ConvAct(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, channels, 1), nn.BatchNorm2d(channels), nn.SiLU()

    def forward(self, x):
        y = self.norm(self.conv(x))
        return self.act(y) if self.training else F.silu(y)


class Listed(Calls):
    """With a list for an attribute, as timm's MixedConv2d has it."""

    def __init__(self, function, **children):
        super().__init__(function, **children)
        self.sizes = [2, 3]


def loop(parts):
    """The sum of what an activation makes of each, whatever their number."""
    y = 0
    for part in parts:
        y = y + F.relu(part)
    return y


FORMS = {
    "chunk of what a convolution gives": lambda m, x: loop(F.relu(m.wide(x)).chunk(3, 1)),
    "of fewer parts than asked for": lambda m, x: loop(p[:, :1] for p in F.relu(m.wide(x)).chunk(4, dim=1)),
    "from the last dimension on": lambda m, x: loop(torch.chunk(F.relu(m.wide(x)), 3, dim=-3)),
    "split by size": lambda m, x: loop(F.relu(m.wide(x)).split(2, 1)),
    "split by sizes": lambda m, x: loop(p[:, :1] for p in torch.split(F.relu(m.wide(x)), [1, 3, 2], 1)),
    "tensor_split by number": lambda m, x: loop(p[:, :1] for p in F.relu(m.wide(x)).tensor_split(4, 1)),
    "tensor_split by places": lambda m, x: loop(p[:, :1] for p in F.relu(m.wide(x)).tensor_split((2, 3), dim=1)),
    "unbind": lambda m, x: loop(F.relu(m.wide(x)).unbind(1)),
    "of a module of one's own": lambda m, x: loop(F.relu(m.wide(y)) for y in list(m.own(x).chunk(2, 1))),
    "of one in a sequence": lambda m, x: loop(F.relu(m.wide(y)) for y in m.sequence(x).split(2, 1)),
    "taken as a whole": lambda m, x: F.relu(m.wide(torch.cat([*m.pool(m.conv(x)).chunk(2, 1)][::-1], 1))),
    "counted": lambda m, x: F.relu(m.wide(x)) / len(m.own(x).chunk(2, 1)),
    "of the input's images": lambda m, x: torch.cat([F.relu(m.wide(y)) for y in x.chunk(2)]),
    "of the input's rows": lambda m, x: loop(F.relu(m.wide(y)) for y in x.chunk(3, -1)),
    "of the images of what a convolution gives": lambda m, x: loop(F.relu(m.wide(m.conv(x))).chunk(2)),
    "by a list that it has": lambda m, x: loop(p[:, :1] for p in F.relu(m.wide(x)).split([1, *m.sizes], 1)),
}


def model_of(form):
    own, sequence = ConvAct(4), nn.Sequential(ConvAct(3), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    children = {"wide": nn.Conv2d(2, 6, 1), "own": own, "sequence": sequence, "pool": nn.MaxPool2d(2)}
    return tritonconv.patch(Listed(form, **children))


@pytest.mark.parametrize("form", FORMS)
def test_it_is_traced_and_computes_what_it_did(form):
    model = model_of(FORMS[form])
    assert statuses(model)["wide"] == "fused conv2d+relu"
    assert_as_before(model)
    assert_as_before(model.eval())
    assert_as_before(model, torch.randn(4, 2, 3, 9, dtype=torch.float64))


def hook(module):
    module.register_forward_hook(lambda module, args, y: torch.cat([y, y], 1))


def widen(conv):
    twice = nn.Conv2d(2, 2 * conv.out_channels, 1)
    conv.weight, conv.bias, conv.out_channels = twice.weight, twice.bias, twice.out_channels


CHANGES = {
    "more channels": lambda m: widen(m.wide),
    "a hook": lambda m: hook(m.wide),
    "a hook on a module that was looked through": lambda m: hook(m.own.act),
    "a list's entry": lambda m: m.sizes.__setitem__(slice(None), [3, 2]),
    "a list": lambda m: setattr(m, "sizes", [1, 1, 3]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_after_patching(what):
    def forward(m, x):
        first, *others = m.wide(x).split(6, 1)
        wide = loop(part[:, :1] for part in m.own(x).split(2, 1)) + first
        return loop(part[:, :1] for part in wide.split([1, *m.sizes], 1)) + len(others)

    model = model_of(forward).eval()
    assert_as_before(model)
    with torch.no_grad():
        model(torch.randn(SIZE, dtype=torch.float64))
    CHANGES[what](model)
    assert_as_before(model)


SIZES = (2, 2, 6, 6), (1, 2, 6, 6), (3, 2, 6, 6), (0, 2, 6, 6), (5, 2, 6, 6), (2, 6, 6)


@pytest.mark.parametrize("dim", (0, 1))
def test_inputs_of_other_sizes(dim):
    """Of one image there is one part, and without a dimension for images the channels are the first."""
    model = model_of(lambda m, x: sum(p.sum() for p in F.relu(m.wide(x)).chunk(3, dim)))
    assert statuses(model)["wide"] == "fused conv2d+relu"
    for size in SIZES:
        assert_as_before(model, torch.randn(size, dtype=torch.float64))


REFUSED = {
    "split of an input": (lambda m, x: loop(m.conv(p) for p in x.split(1)), "it iterates over split"),
    "of what is not known": (lambda m, x: loop((m.conv(x) @ x).chunk(2, 1)), "it iterates over chunk"),
    "of something else": (lambda m, x: loop(m.conv(x)), "it iterates over conv"),
    "of a hooked module": (lambda m, x: loop(m.hooked(x).chunk(2, 1)), "it iterates over chunk"),
    "a list that grows": (lambda m, x: m.conv(x) * len(m.sizes.append(1) or m.sizes), "it changes 'sizes', a list"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_known(form):
    forward, why = REFUSED[form]
    model = Listed(forward, hooked=nn.Conv2d(2, 2, 1), relu=nn.ReLU())
    model.hooked.register_forward_hook(lambda *_: None)
    reasons = {site.fqn: site.reason for site in tritonconv.report(tritonconv.patch(model))}
    assert reasons["conv"] == f"nothing fused: Listed.forward cannot be traced: {why}"
    assert model.sizes == [2, 3]
    assert_as_before(model)


@pytest.mark.parametrize("each", (1, 3, 6))
def test_taken_apart_into_two_if_there_are_two(each):
    """Else with the error of Python's own."""

    def forward(m, x):
        first, second = F.relu(m.wide(x)).split(each, 1)
        return first - second

    model = model_of(forward)
    assert statuses(model)["wide"] == "fused conv2d+relu"
    if each == 3:
        return assert_as_before(model)
    said = []
    for run in (model, forward):
        with pytest.raises(ValueError, match="values to unpack") as error:
            run(*([model] if run is forward else []), torch.randn(SIZE))
        said.append(str(error.value))
    assert said[0] == said[1]
