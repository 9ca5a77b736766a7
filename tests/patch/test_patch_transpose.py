"""`patch` on networks with transposed convolutions."""

import pytest
import torch
import torch.nn.functional as F
from networks import Calls, assert_as_before, statuses
from torch import nn

import tritonconv
from tritonconv import functional


@pytest.fixture(autouse=True)
def transposed(monkeypatch):
    """Output padding and activation of the kernels that ran."""
    seen, original = [], functional.conv_transpose2d

    def spy(*args, **kwargs):
        seen.append((*args[5], kwargs.get("activation")))
        return original(*args, **kwargs)

    monkeypatch.setattr(functional, "conv_transpose2d", spy)
    return seen


def test_a_generator_as_in_dcgan(transposed):
    model = nn.Sequential(
        nn.ConvTranspose2d(5, 6, 4, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(True),
        nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
        nn.ReLU(True),
        nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ReLU(True),
        nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    tritonconv.patch(model)
    assert statuses(model) == {
        "0": "fused conv_transpose2d+batch_norm+relu",
        "3": "fused conv_transpose2d+relu",
        "5": "fused conv_transpose2d+relu",
        "7": "fused conv_transpose2d+tanh",
    }
    assert_as_before(model, torch.randn(2, 5, 1, 1, dtype=torch.float64))
    assert transposed == [(0, 0, "relu"), (1, 1, "relu"), (0, 0, "tanh")]
    assert repr(tritonconv.unpatch(model)[0]).startswith("ConvTranspose2d(5, 6")


def test_a_u_net(transposed):
    def forward(m, x):
        skip = F.relu(m.conv(x))
        y = m.up(m.down(m.pool(skip)))
        return m.head(torch.cat((y, skip), 1))

    model = Calls(
        forward,
        pool=nn.MaxPool2d(2),
        down=nn.Conv2d(2, 4, 3, padding=1),
        up=nn.ConvTranspose2d(4, 2, 2, stride=2),
        head=nn.Conv2d(4, 1, 1),
    )
    tritonconv.patch(model, strict=True)
    assert statuses(model)["up"] == "swapped conv_transpose2d"
    assert_as_before(model)
    assert len(transposed) == 1


@pytest.mark.parametrize("call", (lambda up, x, size: up(x, size), lambda up, x, size: up(x, output_size=size)))
def test_the_size_of_the_output_may_be_given(call, transposed):
    """As a decoder does that has to meet an odd size."""
    model = Calls(
        lambda m, x: F.relu(call(m.up, m.conv(x)[..., ::2, ::2], [5, 6])), up=nn.ConvTranspose2d(2, 3, 3, 2, 1)
    )
    tritonconv.patch(model)
    assert_as_before(model)
    assert transposed == [(0, 1, "relu")]
    for wrong, text in (([4, 6], "requested an output size"), ([5], "output_size must have 2")):
        with pytest.raises(ValueError, match=text):
            model.up(torch.randn(1, 2, 3, 3), wrong)


def test_a_hook_sees_the_value_before_the_activation(transposed):
    model = nn.Sequential(nn.ConvTranspose2d(2, 2, 2), nn.ReLU())
    tritonconv.patch(model)
    seen = []
    model[0].register_forward_hook(lambda module, args, value: seen.append(value.min().item()))
    assert_as_before(model)
    assert min(seen) < 0
    assert transposed == [(0, 0, None)]


def test_what_stays_on_torch():
    model = nn.Sequential(
        nn.LazyConvTranspose2d(2, 3),
        nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(2, 2, 3)),
        nn.ConvTranspose2d(2, 2, 3),
        nn.ConvTranspose3d(2, 2, 3),
    )
    reasons = {site.fqn: site.reason for site in tritonconv.report(tritonconv.patch(model))}
    assert reasons == {
        "0": "it has no weights before its first call: run the model once, then patch it, or give patch a sample",
        "1": "it is parametrized: a kernel's weight is packed once, not at every call",
        "2": "",
        "3": "no kernel computes it",
    }


def test_a_padding_mode_set_after_patching_raises_torchs_error():
    model = tritonconv.patch(nn.ConvTranspose2d(2, 2, 3))
    model.padding_mode = "circular"
    with pytest.raises(ValueError, match="Only `zeros` padding mode is supported for ConvTranspose2d"):
        model(torch.randn(1, 2, 3, 3))
