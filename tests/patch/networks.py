"""What the tests of `patch` share: small networks, the comparison with torch, and a record of the kernels called."""

import copy

import torch
from torch import nn

import tritonconv

SIZE = (2, 2, 6, 6)  # what the small networks take: the interpreter is slow


def vgg_like() -> nn.Sequential:
    """Two stages of convolution, ReLU and pooling, and a classifier."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)),
        nn.Conv2d(5, 3, 1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


class Calls(nn.Module):
    """A convolution, and a forward made of `function(self, x)`."""

    def __init__(self, function, **children):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        for name, child in children.items():
            setattr(self, name, child)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def statuses(model: nn.Module) -> dict[str, str]:
    """`{fqn: "status pattern"}` of the report."""
    return {site.fqn: f"{site.status} {site.pattern}" for site in tritonconv.report(model)}


def step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What one forward and backward give: outputs, then the gradients of the input and of every parameter used."""
    x = x.clone().requires_grad_()
    outputs = model(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((y * y).sum() for y in outputs if y.is_floating_point())
    gradients = torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)
    return [*outputs, *gradients]


def assert_as_before(patched: nn.Module, x: torch.Tensor | None = None) -> None:
    """A patched model computes what an unpatched copy of it does, forward and backward (float64, default tolerance)."""
    x = torch.randn(SIZE, dtype=torch.float64) if x is None else x
    patched = patched.double()
    plain = tritonconv.unpatch(copy.deepcopy(patched))
    torch.testing.assert_close(step(patched, x), step(plain, x))
