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


def test_max_pool2d(device):
    x = integers((2, 3, 6, 5), torch.float32, device)
    options = dict(kernel_size=3, stride=2, padding=1, ceil_mode=True, return_indices=True)
    assert all(map(torch.equal, nn.MaxPool2d(**options)(x), torch.nn.MaxPool2d(**options)(x)))
