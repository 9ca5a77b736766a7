"""The outputs of a patched model have the strides of the unpatched one's, whatever the memory of inputs and weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import Calls
from torch import nn

import tritonconv

MODELS = {
    "conv": lambda: nn.Conv2d(2, 4, 3, padding=1, stride=2),
    "depthwise": lambda: nn.Conv2d(2, 2, 3, padding=1, groups=2),
    "1×1": lambda: nn.Conv2d(2, 3, 1),
    "conv+norm+relu": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU()),
    "residual": lambda: Calls(lambda m, x: F.relu(m.norm(m.conv(x)) + x), norm=nn.BatchNorm2d(2)),
    "norm+relu": lambda: nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()),
    "transposed+relu": lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.ReLU()),
    "max_pool2d": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "avg_pool2d": lambda: nn.AvgPool2d(2, ceil_mode=True),
    "global": lambda: nn.AdaptiveAvgPool2d(1),
}
MEMORY = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "some channels": lambda x: torch.cat((x, x), 1)[:, :2],
    "some channels of channels_last": lambda x: torch.cat((x, x), 1).to(memory_format=torch.channels_last)[:, :2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:1].expand_as(x),
    "one image": lambda x: x[0],
}


@pytest.mark.parametrize("weights", [torch.preserve_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_strides(name, weights):
    plain = MODELS[name]().to(memory_format=weights)
    patched = tritonconv.patch(copy.deepcopy(plain))
    for shape in ((2, 2, 6, 6), (1, 2, 6, 6), (2, 2, 6, 1), (1, 2, 1, 6)):  # sizes of 1 leave strides ambiguous
        for memory, arrange in MEMORY.items():
            x = arrange(torch.randn(shape))
            if x.dim() == 3 and any(isinstance(module, nn.BatchNorm2d) for module in plain.modules()):
                continue  # takes no single image
            for training, gradients in ((True, True), (False, True), (False, False)):
                with torch.set_grad_enabled(gradients):
                    want = plain.train(training)(x)
                    for _ in range(2):  # the second call repeats the first
                        got = patched.train(training)(x)
                        assert got.stride() == want.stride(), (shape, memory, training, gradients)


@pytest.mark.parametrize("weights", [torch.preserve_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"residual", "global"}))
def test_strides_of_the_gradient_of_the_input(name, weights):
    """Of which people take views. Sums, and gradients of means of all pixels, may be in either format."""
    plain = MODELS[name]().to(memory_format=weights)
    patched = tritonconv.patch(copy.deepcopy(plain))
    for memory in ("NCHW", "channels_last", "some channels"):
        x = MEMORY[memory](torch.randn(2, 2, 6, 6)).requires_grad_()
        want, got = (torch.autograd.grad(model(x).square().sum(), x)[0] for model in (plain, patched))
        assert got.stride() == want.stride(), memory
        torch.testing.assert_close(got, want)
