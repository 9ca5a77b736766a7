"""What tests of replayed calls share: a network, its twins, what can be done to it, the comparison with torch."""

import copy

import torch
from networks import SIZE, Net
from torch import nn
from torch.nn.utils import prune

import tritonconv
from tritonconv import replay

CALLS = replay._FIRST + 3  # alike, of which the last ones are replayed
SIZES = [SIZE, (1, 2, 6, 6), (2, 2, 8, 6), (2, 2, 6, 8), (3, 2, 8, 8), (1, 2, 4, 4)]


class Kept(nn.Module):
    """Cannot be traced, and keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.seen, self.calls = None, 0

    def forward(self, x):
        self.seen = x
        self.calls += 1
        return x


class Mixed(nn.Module):
    """All that may stand in a forward: blocks, torch's functions between them, and a module that nobody looks into."""

    def __init__(self, middle: nn.Module | None = None):
        super().__init__()
        self.net, self.middle = Net(), middle or nn.Identity()
        self.more = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Dropout(), nn.BatchNorm2d(4))
        self.up = nn.ConvTranspose2d(8, 2, 2, stride=2)

    def forward(self, x):
        y = self.middle(self.net.stem(x))
        z = torch.cat((self.more(y) + y, 2 + y), 1)
        z = self.up(z).relu_()
        return self.net(x), z, z.flatten(1), torch.cat([y, y], 1), y + y


def twins(middle: nn.Module | None = None, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = Mixed(middle).to(dtype).eval()
    with torch.no_grad():
        for buffer in plain.buffers():
            if buffer.dim():
                buffer.uniform_(0.5, 2)
    return tritonconv.patch(copy.deepcopy(plain)), plain


def programs(model: nn.Module) -> list:
    return [program for _, program in model.__dict__["_tritonconv"].replays._programs.values()]


def replayed(model: nn.Module) -> int:
    return sum(program.calls for program in programs(model))


def assert_alike(patched, plain, *inputs, calls: int = CALLS) -> None:
    with torch.no_grad():
        want = plain(*inputs)
        for _ in range(calls):
            got = patched(*inputs)
            torch.testing.assert_close(got, want)
            assert [y.stride() for y in got] == [y.stride() for y in want]


def shaping() -> nn.Sequential:
    layers = nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.Dropout(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)


# What can be done to a model between two calls, each a function of it.


def in_place(path: str, value: float):
    def change(m):
        with torch.no_grad():
            m.get_parameter(path).mul_(value)

    return change


def unhooked(hook):
    def change(m):
        hook(m).remove()

    return change


CHANGES = {
    "nothing": lambda m: None,
    "a weight in place": in_place("net.stem.0.weight", 2),
    "a weight behind the counter": lambda m: m.net.conv.weight.data.mul_(2),
    "a weight's memory": lambda m: setattr(m.net.conv.weight, "data", m.net.conv.weight.data * 2),
    "another weight": lambda m: setattr(m.up, "weight", nn.Parameter(m.up.weight.detach() * 2)),
    "a bias in place": in_place("more.0.bias", -2),
    "another bias": lambda m: setattr(m.more[0], "bias", nn.Parameter(m.more[0].bias.detach() * 2)),
    "no bias": lambda m: setattr(m.up, "bias", None),
    "running statistics in place": lambda m: m.net.stem[1].running_mean.add_(1),
    "other running statistics": lambda m: setattr(m.net.norm, "running_var", m.net.norm.running_var * 2),
    "a loaded state": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "an assigned state": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}, assign=True),
    "eps": lambda m: setattr(m.net.norm, "eps", 0.5),
    "statistics of the batch": lambda m: m.net.norm.train(),
    "training": lambda m: (m.train(), setattr(m.more[2], "p", 0.0)),
    "dilation": lambda m: (setattr(m.net.conv, "dilation", (2, 2)), setattr(m.net.conv, "padding", (2, 2))),
    "another child": lambda m: m.more.__setitem__(1, nn.Sigmoid()),
    "no child": lambda m: m.more.__delitem__(3) or m.more.append(nn.Identity()),
    "a grandchild": lambda m: setattr(
        m.net, "stem", nn.Conv2d(2, 4, 3, padding=1).double().requires_grad_(False).eval()
    ),
    "a forward of its own": lambda m: setattr(m.net.stem[2], "forward", lambda x: x * 3),
    "a child's forward": lambda m: setattr(m.net.stem, "forward", lambda x: x[:, :1].expand(-1, 4, -1, -1) * 3),
    "a hook": lambda m: m.net.norm.register_forward_hook(lambda module, args, y: y + 1),
    "a hook before a child": lambda m: m.net.stem.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "a hook for a while": unhooked(lambda m: m.net.norm.register_forward_hook(lambda module, args, y: y + 1)),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "weight norm": lambda m: nn.utils.parametrizations.weight_norm(m.net.conv),
    "pruning": lambda m: prune.l1_unstructured(m.more[0], "weight", 3),
    "a child unpatched": lambda m: tritonconv.unpatch(m.net.stem),
    "a replaced dictionary": lambda m: m.net.stem[0]._parameters.update(
        weight=nn.Parameter(m.net.stem[0].weight.detach() * 3)
    ),
}


def fixed(m: nn.Module, change: str) -> None:
    """Makes a change the same for the patched and the plain model, though it draws random numbers."""
    torch.manual_seed(3)
    CHANGES[change](m)
