"""Calls with gradients that repeat earlier ones as a whole: they train as torch does, whatever happens in between."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from networks import Net, sample, sgd
from torch import nn
from torch.utils.checkpoint import checkpoint

import tritonconv
from tritonconv import replay
from tritonconv.replay import steps

CALLS = replay._FIRST + 1  # alike, after which they are repeated


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory as torch gives it: what fills it would stand between the launches."""


class Small(nn.Module):
    """Blocks, torch's own functions between them, numbers that are sizes, a parameter that nobody uses."""

    def __init__(self):
        super().__init__()
        self.net, self.more = Net(), nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.ReLU())
        self.unused, self.linear = nn.Parameter(torch.zeros(3)), nn.Linear(16, 3)

    def forward(self, x):
        y = self.more(x)
        y = self.linear(y.view(y.size(0), -1)) * 0.5
        return F.silu(self.net(x) + y)


def twins(plain: nn.Module | None = None, repeated: bool = True) -> tuple[nn.Module, nn.Module]:
    """A patched model, whose calls with gradients are repeated from now on, and the same unpatched."""
    torch.manual_seed(0)
    plain = Small() if plain is None else plain
    patched = tritonconv.patch(copy.deepcopy(plain.double()))
    for model in (patched, plain):
        for _ in range(CALLS):
            model(sample())
    assert bool(programs(patched)) == repeated
    return patched, plain


def programs(model: nn.Module) -> list:
    return [each for _, each in vars(model)["_tritonconv"].replays._programs.values() if isinstance(each, steps.Step)]


def calls(model: nn.Module) -> int:
    return sum(program.calls for program in programs(model))


def gradients(model: nn.Module, x=None, dy=None, **options) -> tuple:
    """The output, and the gradients of the parameters that have some."""
    y = model(sample() if x is None else x)
    wanted = [p for name, p in model.named_parameters() if p.requires_grad and name != "unused"]
    return y, *torch.autograd.grad(y, wanted, torch.ones_like(y) if dy is None else dy, **options)


def assert_alike(patched: nn.Module, plain: nn.Module, x=None, dy=None) -> None:
    torch.testing.assert_close(gradients(patched, x, dy), gradients(plain, x, dy))
    torch.testing.assert_close(patched.state_dict(), plain.state_dict())


def test_training_is_repeated_and_leads_where_torchs_does():
    patched, plain = twins()
    for model in (patched, plain):
        optimizer = sgd(model)
        for seed in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(sample(seed)), torch.tensor([0, 2])).backward()
            optimizer.step()
        assert model.unused.grad is None
    assert calls(patched) == 4
    torch.testing.assert_close(patched.state_dict(), plain.state_dict())
    (program,) = programs(patched)
    assert max(len(segment.jobs) for segment in program.segments) > 2


class Part(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.conv, self.part = nn.Conv2d(2, 2, 3), part

    def forward(self, x):
        return self.part(self.conv(x))


@pytest.mark.parametrize(("part", "repeated"), (
    (lambda y: y[..., :-1], True),
    (lambda y: y.chunk(2, 1)[1], True),
    (lambda y: y[:, :1].expand_as(y), False),
))  # fmt: skip
def test_a_view_of_what_was_computed_has_its_strides(part, repeated):
    patched, plain = twins(Part(part), repeated)
    assert_alike(patched, plain)
    assert patched(sample()).stride() == plain(sample()).stride()
    assert bool(calls(patched)) == repeated


@pytest.mark.parametrize("dy", (
    torch.ones((), dtype=torch.float64).expand(2, 3),
    torch.arange(6.0, dtype=torch.float64).view(3, 2).t(),
))  # fmt: skip
def test_gradients_of_any_strides_and_values(dy):
    patched, plain = twins()
    assert_alike(patched, plain, dy=dy)
    assert calls(patched) == 1


def test_calls_at_once_keep_what_each_needs():
    patched, plain = twins()

    def run(model):
        outputs = [model(sample(seed)) for seed in range(3)]
        return [torch.autograd.grad(y.sum(), model.linear.weight, retain_graph=True) for y in outputs + outputs[::-1]]

    torch.testing.assert_close(run(patched), run(plain))
    (program,) = programs(patched)
    assert program.calls == 3
    gc.collect()
    assert len(program._frames) == 3  # nobody needs them any more


def test_threads_at_once():
    patched, plain = twins(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)))
    want = [gradients(plain, sample(seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            got = list(pool.map(lambda seed: gradients(patched, sample(seed)), range(4)))
            torch.testing.assert_close(got, want)
    assert calls(patched) == 16


def test_gradients_that_are_differentiable():
    patched, plain = twins()

    def penalty(model):
        first = gradients(model, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), [*model.net.parameters()])

    torch.testing.assert_close(penalty(patched), penalty(plain))
    assert calls(patched) == 1
    torch.testing.assert_close(patched.state_dict(), plain.state_dict())  # one batch more, not two
    y = patched(sample())
    patched.eval()
    with pytest.raises(RuntimeError, match="Small has changed since the forward"):
        torch.autograd.grad(y.sum(), patched.linear.weight, create_graph=True)


def test_what_backward_needs_must_not_change():
    patched, _ = twins()
    for change in (lambda m, x: m.linear.weight.add_(1), lambda m, x: x.add_(1)):
        x = sample()
        y = patched(x)
        with torch.no_grad():
            change(patched, x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    last = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(32, 2), nn.Sigmoid())
    y = twins(last)[0](sample()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = twins(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten()))[0](sample())
    y.mul_(2).sum().backward()  # a view in the model, but not to the caller


def test_a_second_backward_is_as_with_torch():
    y = twins()[0](sample()).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


CHANGES = {
    "a weight in place": lambda m: m.linear.weight.data.mul_(2),
    "another weight": lambda m: setattr(m.linear, "weight", nn.Parameter(m.linear.weight.detach() * 2)),
    "a frozen weight": lambda m: m.net.conv.weight.requires_grad_(False),
    "a frozen net": lambda m: m.net.requires_grad_(False).eval(),
    "a mode": lambda m: m.eval(),
    "a hook": lambda m: m.linear.register_forward_hook(lambda module, args, y: y * 3),
    "a hook for gradients": lambda m: m.linear.weight.register_hook(lambda gradient: gradient * 3),
    "a number": lambda m: setattr(m.net.norm, "eps", 0.5),
    "momentum": lambda m: setattr(m.net.norm, "momentum", 0.5),
    "statistics": lambda m: m.net.norm.running_mean.add_(1),
    "another child": lambda m: m.more.__setitem__(1, nn.Sigmoid()),
    "another linear layer": lambda m: setattr(m, "linear", nn.Linear(16, 3).double()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model(change):
    patched, plain = twins()
    assert_alike(patched, plain)
    for model in (patched, plain):
        torch.manual_seed(1)
        CHANGES[change](model)
    for seed in range(2 * CALLS):
        assert_alike(patched, plain, sample(seed))


def test_a_frozen_weight_is_read_as_it_is_now():
    plain = Small()
    plain.net.requires_grad_(False)
    patched, plain = twins(plain)
    for model in (patched, plain):
        model.net.conv.weight.mul_(2)
    for _ in range(CALLS + 1):
        assert_alike(patched, plain)


def test_hooks_see_the_gradients_of_steps_alone():
    torch.manual_seed(0)
    model, seen = tritonconv.patch(Small().double()), []
    model.linear.weight.register_hook(seen.append)
    for _ in range(CALLS + 1):
        model(sample())
    assert not seen and not programs(model)


def test_recomputed_and_offloaded_activations():
    patched, plain = twins()
    got, want = (
        torch.autograd.grad(checkpoint(model, sample(), use_reentrant=False).sum(), model.linear.weight)
        for model in (patched, plain)
    )
    torch.testing.assert_close(got, want)
    with torch.autograd.graph.save_on_cpu():
        assert_alike(patched, plain)
    assert not calls(patched)


def test_an_input_with_a_gradient():
    patched, plain = twins()
    got, want = (torch.autograd.grad(m(x).sum(), x) for m in (patched, plain) for x in [sample().requires_grad_()])
    torch.testing.assert_close(got, want)
    assert not calls(patched)


class Odd(nn.Module):
    """Nobody can look into it."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("last", (
    nn.Dropout(0.5), Odd(), nn.Identity().requires_grad_(False),
), ids=("random numbers", "untraceable", "too much"))  # fmt: skip
def test_what_is_not_repeated(last, monkeypatch):
    if isinstance(last, nn.Identity):
        monkeypatch.setattr(steps, "KEPT", 1)
    patched, plain = twins(nn.Sequential(nn.Conv2d(2, 2, 3), last), repeated=False)
    for _ in range(4 * CALLS):
        patched(sample())
    torch.manual_seed(1)
    want = gradients(plain)
    torch.manual_seed(1)
    torch.testing.assert_close(gradients(patched), want)
    if not isinstance(last, Odd):  # calls without gradients are, all the same
        with torch.no_grad():
            for _ in range(CALLS + 1):
                torch.testing.assert_close(patched.eval()(sample()), plain.eval()(sample()))
        assert vars(patched)["_tritonconv"].replays._programs


def test_what_is_kept_goes_with_the_model():
    patched, _ = twins()
    (program,) = programs(patched)
    y, program = patched(sample()), torch.utils.weak.WeakTensorKeyDictionary({program.constants[0]: 1})
    del patched
    gc.collect()
    assert len(program) == 1  # the graph of the call needs it
    y.sum().backward()
    del y
    gc.collect()
    assert not program


@pytest.mark.parametrize("repeated", (False, True))
def test_gradients_of_a_batch(repeated):
    """As torch.autograd.functional.jacobian asks for them, of a call that is repeated and of another."""
    patched, plain = twins()
    before, x = calls(patched), sample() if repeated else sample()[:1]
    dy = torch.eye(3 * len(x), dtype=x.dtype).view(-1, len(x), 3)
    got, want = (gradients(model, x, dy, is_grads_batched=True) for model in (patched, plain))
    torch.testing.assert_close(got, want)
    assert calls(patched) == before + repeated
