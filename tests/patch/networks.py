"""What the tests of `patch` share: small networks, the comparison with torch, and a record of the kernels called."""

import copy

import torch
import torch.nn.functional as F
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


class Net(nn.Module):
    """One block of each kind: with norm, with a residual too, pooling, a bare convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        x = self.pool(F.relu(self.norm(self.conv(x)) + x))
        return self.head(x).mean((2, 3))


NET_SITES = {
    "stem.0": "fused conv2d+batch_norm+relu",
    "conv": "fused conv2d+batch_norm+add+relu",
    "pool": "swapped max_pool2d",
    "head": "swapped conv2d",
}


def twins(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """A patched `Net` and the same unpatched."""
    torch.manual_seed(0)
    plain = Net().to(dtype)
    return tritonconv.patch(copy.deepcopy(plain)), plain


def sample(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, forward=None, first=0) -> list:
    """The losses of three steps on the samples from `first`, and the parameters and buffers that they lead to."""
    optimizer, losses = optimizer or sgd(model), []
    for seed in range(first, first + 3):
        optimizer.zero_grad()
        loss = F.cross_entropy((forward or model)(sample(seed)), torch.tensor([0, 2]))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(value.clone() for value in model.state_dict().values())]


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
