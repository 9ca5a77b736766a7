"""Pairs of launches that become one in replayed calls: which do, and that the results stay the same."""

import copy

import pytest
import torch
from torch import nn

import tritonconv
from tritonconv import replay
from tritonconv.replay import program

CALLS = replay._FIRST + 3


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory as torch gives it: what fills it would stand between the launches."""


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels in the programs that are made."""
    names, join = [], program.join

    def spy(graph):
        names.extend(n.meta["launch"].launch.kernel.__name__ for n in graph.nodes if "launch" in n.meta)
        join(graph)

    monkeypatch.setattr(program, "join", spy)
    return names


def block(C: int, K: int, R: int = 1, **options) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(C, K, R, bias=False, **options), nn.BatchNorm2d(K), nn.ReLU6())


class Inverted(nn.Module):
    """An inverted residual, whose parts `between` calls on the way from the expansion to the depthwise convolution."""

    def __init__(self, C: int = 8, K: int = 32, R: int = 3, stride: int = 1, between=lambda module, y: y):
        super().__init__()
        self.between, self.residual = between, stride == 1
        self.expand, self.window = block(C, K), block(K, K, R, stride=stride, padding=R // 2, groups=K)
        self.project = nn.Sequential(nn.Conv2d(K, C, 1, bias=False), nn.BatchNorm2d(C))

    def forward(self, x):
        y = self.project(self.window(self.between(self, self.expand(x))))
        return x + y if self.residual else y


def net(*parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*parts)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval().to(memory_format=torch.channels_last)


def compare(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Calls of the patched model against the model in float64. Returns the patched one."""
    patched = tritonconv.patch(copy.deepcopy(model))
    want = copy.deepcopy(model).double()(x.double())
    results = [patched(x) for _ in range(CALLS)]
    torch.testing.assert_close(results[-1].double(), want, rtol=1e-4, atol=1e-4)
    assert all(torch.allclose(result, results[0], rtol=1e-6, atol=1e-6) for result in results)
    return patched


def image(N: int = 2, C: int = 8, H: int = 15, W: int = 12) -> torch.Tensor:
    return torch.randn(N, C, H, W).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_expansion_and_depthwise_are_one_launch(launched):
    parts = Inverted(), Inverted(stride=2), Inverted(R=5, stride=2), Inverted(K=24)
    compare(net(*parts), image())
    assert launched == ["expand_depthwise", "conv_fprop"] * 4


class Gated(Inverted):
    """Reads the expansion a second time."""

    def forward(self, x):
        y = self.expand(x)
        return self.project(self.window(y) * y.mean((2, 3), keepdim=True))


class Both(Inverted):
    """Gives it away."""

    def forward(self, x):
        y = self.expand(x)
        return torch.cat((y, self.window(y)), 1)


APART = {
    "read by torch": lambda: Inverted(between=lambda module, y: torch.sigmoid(y)),
    "read twice": Gated,
    "given back": Both,
    "two filters a channel": lambda: nn.Sequential(block(8, 16), block(16, 32, 3, groups=16)),
    "not pointwise": lambda: nn.Sequential(block(8, 16, 2), block(16, 16, 3, groups=16)),
}


@pytest.mark.parametrize("make", APART.values(), ids=APART)
@torch.no_grad()
def test_what_stays_two_launches(make, launched):
    compare(net(make()), image())
    assert launched and "expand_depthwise" not in launched


@torch.no_grad()
def test_the_expansion_reads_channels_of_a_whole(launched):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.more = block(8, 8), block(8, 8), Inverted()
            self.last = nn.Conv2d(16, 4, 1)

        def forward(self, x):
            a = self.a(x)
            return self.last(torch.cat((self.b(x), a), 1)) + self.more(a).mean()

    compare(net(Whole()), image())
    assert "expand_depthwise" in launched


@torch.no_grad()
def test_weights_that_change_are_noticed():
    model, x = net(Inverted()), image()
    patched = compare(model, x)
    for each in (model, patched):
        inverted = each[0]
        for weight in (inverted.expand[0].weight, inverted.window[0].weight, inverted.expand[1].running_var):
            weight.mul_(0.5)
    torch.testing.assert_close(patched(x), model(x), rtol=1e-4, atol=1e-4)
    want = model(x[:1])
    for _ in range(CALLS):
        torch.testing.assert_close(patched(x[:1]), want, rtol=1e-4, atol=1e-4)


def averaged(conv=None, norm=None, pool=None) -> list[nn.Module]:
    return [conv or nn.Conv2d(8, 6, 3), norm or nn.BatchNorm2d(6), nn.Tanh(), pool or nn.AvgPool2d(2)]


@torch.no_grad()
def test_a_convolution_and_means_of_what_it_gives_are_one_launch(launched):
    parts = averaged(), averaged(pool=nn.AvgPool2d((3, 2))), averaged(nn.Conv2d(6, 8, 1, groups=2), nn.Identity())
    for part in parts:
        compare(net(*part), image(C=part[0].in_channels, H=22, W=23))
    assert launched == ["conv_avg_pool"] * 3


MEANS_APART = {
    "windows overlap": lambda: averaged(pool=nn.AvgPool2d(3, 2)),
    "windows reach outside": lambda: averaged(pool=nn.AvgPool2d(2, padding=1)),
    "another divisor": lambda: averaged(pool=nn.AvgPool2d(2, divisor_override=3)),
    "roots of means": lambda: averaged(pool=nn.LPPool2d(2, 2)),
    "one window": lambda: averaged(pool=nn.AvgPool2d(10)),
    "maxima": lambda: averaged(pool=nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("make", MEANS_APART.values(), ids=MEANS_APART)
@torch.no_grad()
def test_what_stays_apart_from_its_means(make, launched):
    compare(net(*make()), image(H=14, W=13))
    assert launched and "conv_avg_pool" not in launched
