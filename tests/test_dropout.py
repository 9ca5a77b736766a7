"""Dropout against torch's, bit by bit: what it gives, its derivatives, and what the generator gives afterwards."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import tritonconv
from tritonconv import engines
from tritonconv.launch import dropout as launch
from tritonconv.ops import dropout as ops

GENERATION = launch.STATE // 2  # numbers
PIECE = 3 * GENERATION


@pytest.fixture(autouse=True)
def small_tensors(monkeypatch):
    """Of a few elements, too, by kernels; a few pieces of a few generations."""
    if not launch.draws_as_torch():
        pytest.skip("torch draws otherwise on this machine")
    monkeypatch.setattr(ops, "_LEAST", 1)
    monkeypatch.setattr(launch, "_PIECE", PIECE)


@pytest.fixture
def runs(monkeypatch):
    """The sizes that kernels drew for."""
    seen, draw = [], launch.draw

    def spy(x, p):
        seen.append(tuple(x.shape))
        return draw(x, p)

    monkeypatch.setattr(launch, "draw", spy)
    return seen


def laid(x: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """x with its axes in this order of memory."""
    return x.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist())


def stepped(function, x: torch.Tensor, dy: torch.Tensor, p: float, before) -> tuple:
    """What two calls and the gradient give, and the generator's state, after some draws."""
    torch.manual_seed(3)
    before()
    x = x.detach().requires_grad_()
    first, second = function(x, p), function(x.detach(), 1 - p)
    (gradient,) = torch.autograd.grad(first, x, dy)
    return first, second, gradient, torch.get_rng_state()


def assert_as_torchs(x: torch.Tensor, dy: torch.Tensor, p: float, before) -> None:
    ours, torchs = (stepped(function, x, dy, p, before) for function in (ops.dropout, F.dropout))
    for got, want in zip(ours, torchs, strict=True):
        assert got.dtype is want.dtype and got.stride() == want.stride()
        assert torch.equal(got.isnan(), want.isnan())
        got, want = (value.nan_to_num(7.0) for value in (got, want))
        assert torch.equal(got, want) and torch.equal(got.signbit(), want.signbit())  # of what was dropped, too


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=4, max_size=4).map(tuple),
    order=st.permutations(range(4)).map(tuple),
    p=st.floats(0, 1, exclude_min=True, exclude_max=True),
    dtype=st.sampled_from(FLOATS),
    before=st.integers(0, 2 * launch.STATE),
)
def test_any_sizes_orders_of_memory_probabilities_and_positions(shape, order, p, dtype, before):
    x = laid(torch.randn(shape), order).to(dtype)
    assert_as_torchs(x, torch.randn(shape).to(dtype), p, lambda: torch.randint(9, (before,)))


@pytest.mark.parametrize("n", (0, 1, 2, GENERATION - 1, GENERATION, GENERATION + 1, PIECE, PIECE + 1, 2 * PIECE + 5))
@pytest.mark.parametrize("before", (0, 1, 623, 624, 625))
def test_generations_and_pieces_end_anywhere(n, before, device, runs):
    x = torch.linspace(-1, 1, n)
    assert_as_torchs(x, x.flip(0), 0.3, lambda: torch.randint(9, (before,)))
    assert runs == ([(n,)] * 2 if n and device.type == "cpu" else [])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_that_are_no_numbers(dtype, device):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45] * 20).to(dtype)
    assert_as_torchs(x, x, 0.5, lambda: None)


def test_numbers_that_the_generator_keeps_stay():
    """Of normal distributions, which it makes two at a time."""
    drawn = []
    for function in (ops.dropout, F.dropout):
        torch.manual_seed(0)
        torch.randn(1, dtype=torch.float64)
        function(torch.ones(7))
        drawn.append(torch.randn(3, dtype=torch.float64))
    assert torch.equal(*drawn)


def test_derivatives_of_both_orders():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def seeded(x):
        torch.manual_seed(1)
        return ops.dropout(x, 0.4).square()

    assert torch.autograd.gradcheck(seeded, x)
    assert torch.autograd.gradgradcheck(seeded, x)


def test_a_checkpoint_draws_again_what_it_drew(runs):
    x, gradients = torch.randn(500, requires_grad=True), []
    for dropout in (lambda x: ops.dropout(x, 0.3), lambda x: F.dropout(x, 0.3)):
        for reentrant in (False, True):
            torch.manual_seed(0)
            checkpoint(lambda x, d=dropout: d(x).square(), x, use_reentrant=reentrant).sum().backward()
            gradients.append((x.grad, torch.get_rng_state()))
            x.grad = None
    for gradient, state in gradients[1:]:
        assert torch.equal(gradient, gradients[0][0]) and torch.equal(state, gradients[0][1])
    assert len(runs) == 4


def test_what_torch_runs(runs, monkeypatch):
    x = torch.randn(6, 8)
    for input in (x[:, ::2], x[:, :1].expand(6, 8), x.double().to_sparse(), torch.empty(0)):
        if input.layout is torch.strided:
            assert_as_torchs(input, torch.randn(input.shape), 0.5, lambda: None)
    for options in ((0.0,), (1.0,), (0, True), (0.5, False), (0.5, True, True)):
        torch.manual_seed(0)
        got = ops.dropout(x.clone(), *options)
        torch.manual_seed(0)
        assert torch.equal(got, F.dropout(x.clone(), *options))
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got 1.5"):
        ops.dropout(x, 1.5)
    with torch.autocast("cpu"):
        assert_as_torchs(x, x, 0.5, lambda: None)
    runs.clear()
    with FlopCounterMode(display=False):
        ops.dropout(x)
    with engines.listing(x.device):
        ops.dropout(x)
    with forward_ad.dual_level():
        dual = ops.dropout(forward_ad.make_dual(x, x))
        assert torch.equal(*forward_ad.unpack_dual(dual))
    torch.func.vmap(ops.dropout, randomness="different")(x)
    torch.func.grad(lambda x: ops.dropout(x).sum())(x)
    torch.compile(lambda x: ops.dropout(x), backend="eager", fullgraph=True)(x)
    monkeypatch.setattr(launch, "draws_as_torch", lambda: False)
    ops.dropout(x)
    monkeypatch.setattr(ops, "_LEAST", x.numel() + 1)
    ops.dropout(x)
    assert runs == []


def network() -> nn.Module:
    layers = nn.Conv2d(2, 4, 3), nn.Dropout(0.2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)
    return nn.Sequential(*layers, nn.Dropout(0.0))


def listed(model: nn.Module) -> list[tuple[str, str]]:
    return [(site.fqn, f"{site.status} {site.pattern}") for site in tritonconv.report(model)]


def test_a_patched_model_drops_the_same(runs):
    plain = network()
    model = tritonconv.patch(copy.deepcopy(plain))
    sites = [("0", "fused conv2d+relu"), ("1", "swapped dropout"), ("4", "swapped dropout"), ("5", "swapped linear")]
    assert listed(model) == sites
    assert model.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(3, 2, 6, 6)
    for network_ in (model, plain):
        torch.manual_seed(0)
        network_(x).sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert runs == [(3, 4, 4, 4), (3, 64)]
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    assert [layer.site.pattern for layer in tritonconv.summary(model, x) if layer.kind == "Dropout" and layer.site] == [
        "conv2d+relu",
        "dropout",
    ]
    assert tritonconv.plan(model, x).unreached == ()
    tritonconv.unpatch(model.train())(x)
    assert len(runs) == 2 and type(model[1]) is nn.Dropout


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear, self.p = nn.Conv2d(2, 4, 3), nn.Linear(64, 3), 0.2

    def forward(self, x):
        x = F.relu(F.dropout(self.conv(x), self.p, self.training)).flatten(1)
        return self.linear(F.dropout(x, training=self.training))


def test_calls_in_a_forward_drop_the_same(runs):
    plain = Functional()
    model = tritonconv.patch(copy.deepcopy(plain))
    assert [name for name in listed(model) if "dropout" in name[1]] == [
        ("dropout", "swapped dropout"),
        ("dropout_1", "swapped dropout"),
    ]
    x, drawn = torch.randn(3, 2, 6, 6), []
    for each in (model, plain):
        torch.manual_seed(0)
        each(x).sum().backward()
        drawn.append(torch.get_rng_state())
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert torch.equal(*drawn)
    assert runs == [(3, 4, 4, 4), (3, 64)]
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    assert {site.reason for site in tritonconv.plan(model, x).unreached} == {"in training alone"}
    tritonconv.patch(tritonconv.unpatch(model.train()), exclude="dropout")(x)
    assert len(runs) == 3


def test_dropouts_that_stay(runs):
    model = network()
    model[4].forward = lambda x: x
    tritonconv.patch(model, exclude="1")
    assert listed(model)[1:3] == [("1", "left dropout"), ("4", "left dropout")]
    model(torch.randn(3, 2, 6, 6))
    assert runs == []
    with pytest.warns(UserWarning, match="none of the 0 sites"):
        tritonconv.patch(nn.Sequential(nn.Dropout(), nn.Linear(3, 4)))


def test_a_sample_takes_no_dropout_for_slow(runs):
    model = tritonconv.patch(network(), torch.randn(3, 2, 6, 6))
    assert {name: status for name, status in listed(model) if "dropout" in status}["4"] == "swapped dropout"
    assert tritonconv.report(model).sites[2].reason == "in training alone; not timed"
