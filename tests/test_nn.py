"""Modules: torch's, in all but who computes."""

import pytest
import torch
from cases import integers

from tritonconv import nn


@pytest.mark.parametrize("options", ({}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}), ids=str)
def test_conv2d_shares_parameters_and_results_with_torchs(options, device):
    theirs = torch.nn.Conv2d(3, 4, 3, **options).to(device)
    ours = nn.Conv2d(3, 4, 3, activation="relu", **options).to(device)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(integers(parameter.shape, device=device))
    ours.load_state_dict(theirs.state_dict())
    x = integers((2, 3, 6, 5), torch.float32, device)
    assert torch.equal(ours(x), torch.relu(theirs(x)))
    assert "activation='relu'" in repr(ours)


@pytest.mark.parametrize("output_size", (None, [6, 5]))
def test_conv_transpose2d_shares_parameters_and_results_with_torchs(output_size, device):
    arguments = 3, 4, 3, 2, 1, 1
    theirs, ours = torch.nn.ConvTranspose2d(*arguments), nn.ConvTranspose2d(*arguments, activation="relu")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(integers(parameter.shape))
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    x = integers((2, 3, 3, 3), torch.float32, device)
    assert torch.equal(ours.to(device)(x, output_size), torch.relu(theirs.to(device)(x, output_size)))
    assert "output_padding=(1, 1), activation='relu'" in repr(ours)
    with pytest.raises(ValueError, match="requested an output size"):
        ours(x, [7, 5])


def test_max_pool2d(device):
    x = integers((2, 3, 6, 5), torch.float32, device)
    options = dict(kernel_size=3, stride=2, padding=1, ceil_mode=True, return_indices=True)
    assert all(map(torch.equal, nn.MaxPool2d(**options)(x), torch.nn.MaxPool2d(**options)(x)))


POOLS = {
    "AvgPool2d": (3, 2, 1, True, False, 5),
    "LPPool2d": (2, 3, 2, True),
    "AdaptiveAvgPool2d": ((2, None),),
    "AdaptiveMaxPool2d": ((4, 3), True),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name, device):
    x = integers((2, 3, 6, 5), torch.float32, device)
    torch.testing.assert_close(getattr(nn, name)(*POOLS[name])(x), getattr(torch.nn, name)(*POOLS[name])(x))


def test_max_unpool2d(device):
    x, indices = torch.nn.MaxPool2d(2, return_indices=True)(integers((2, 3, 6, 5), torch.float32, device))
    arguments = x, indices, (6, 5)
    assert torch.equal(nn.MaxUnpool2d(2)(*arguments), torch.nn.MaxUnpool2d(2)(*arguments))
