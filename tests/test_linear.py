"""Fully connected layers against torch: one vector and a few as kernels, everything else torch's own."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, integers, normal
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import tritonconv
from tritonconv import configs, engines, launch
from tritonconv.functional import conv2d_batch_norm
from tritonconv.launch.linear import geometry_of
from tritonconv.ops import linear as layers

SHAPES = ((1, 1), (3, 5), (8, 64), (17, 130))  # K, C: tiles that are full, and that are not


@pytest.fixture
def runs(monkeypatch):
    """The shapes that a kernel ran for."""
    seen, run = [], layers.run

    def spy(x, weight, *more):
        seen.append(tuple(weight.shape))
        return run(x, weight, *more)

    monkeypatch.setattr(layers, "run", spy)
    return seen


@pytest.fixture
def few(monkeypatch):
    """Takes weights of any size; the kernels that ran, by name, as a function."""
    monkeypatch.setattr(launch.linear, "_LARGE", 0)
    seen, prepare = [], launch.linear.prepare

    def spy(*problem):
        made, run = prepare(*problem)
        seen.append(made.kernel.__name__)
        return made, run

    monkeypatch.setattr(launch.linear, "prepare", spy)
    return lambda: [seen.pop(0) for _ in tuple(seen)]


def parts(M, C, K, dtype, device, make=integers):
    """x [M, C], weight [K, C], bias [K], dy [M, K]."""
    return [make(shape, dtype, device, seed=i) for i, shape in enumerate(((M, C), (K, C), (K,), (M, K)))]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("shape", SHAPES)
def test_integer_sums_are_exact(shape, bias, dtype, device, runs):
    K, C = shape
    weight, x = integers((K, C), dtype, device), integers((1, C), dtype, device, seed=1)
    b = integers((K,), dtype, device, seed=2) if bias else None
    got = layers.linear(x, weight, b, "relu")
    assert torch.equal(got, F.relu(F.linear(x.double(), weight.double(), None if b is None else b.double())).to(dtype))
    assert runs == ([shape] if device.type == "cpu" else [])


@pytest.mark.parametrize("leading", ((), (1,), (1, 1)), ids=str)
def test_any_leading_sizes_and_strides(leading, device):
    weight, x = normal((9, 33), torch.float64, device), normal((33, 2), torch.float64, device, seed=1)[:, 0]
    x = x.view(*leading, 33)
    got, want = layers.linear(x, weight, None), F.linear(x, weight)
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()


def test_gpus_are_left_to_torch_whatever_device_a_listing_has():
    weight, x = normal((3, 4), torch.float32), normal((1, 4), torch.float32)
    for target, count in (("sm_90", 0), (None, 1)):
        with engines.listing(x.device, target) as launches:
            layers.linear(x, weight, None)
        assert len(launches) == count


def test_what_torch_runs(runs):
    weight, bias, x = (normal(shape, torch.float32) for shape in ((3, 4), (3,), (1, 4)))
    for given in ((x.expand(2, 4), weight), (x, weight.t().contiguous().t())):
        torch.testing.assert_close(layers.linear(*given, bias), F.linear(*given, bias))
    with torch.autocast("cpu"):
        assert layers.linear(x, weight, bias).dtype is torch.bfloat16
    layers.linear(x, weight.requires_grad_(), bias).sum().backward()
    assert torch.equal(weight.grad, x.expand(3, 4))
    assert torch.equal(torch.func.vmap(lambda x: layers.linear(x, weight.detach(), bias))(x), F.linear(x, weight, bias))
    assert runs == []
    for bad in (normal((1, 5), torch.float32), x.double(), x.long(), normal((), torch.float32)):
        with pytest.raises(RuntimeError) as expected:
            F.linear(bad, weight.detach(), bias)
        with pytest.raises(RuntimeError) as got:
            layers.linear(bad, weight.detach(), bias)
        assert str(got.value) == str(expected.value)


def test_a_patched_classifier(runs):
    layers_ = nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(True), nn.Dropout(), nn.Linear(5, 3, False)
    model = tritonconv.patch(nn.Sequential(*layers_).double().eval())
    assert [f"{site.status} {site.pattern}" for site in tritonconv.report(model)][1:] == [
        "fused linear+relu",
        "swapped dropout",
        "swapped linear",
    ]
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        got = [model(x[:1]), model(x)]
    assert runs == [(5, 16), (3, 5)]
    with torch.no_grad():
        model[2].weight.mul_(2)  # nothing is kept of a weight
        twice = model(x[:1])
        want = [tritonconv.unpatch(model)(x[:1])]
        model[2].weight.mul_(0.5)
        want += [model(x[:1]), model(x)]
    for ours, theirs in zip([twice, *got], want, strict=True):
        torch.testing.assert_close(ours, theirs)


def pixels(*matrices):
    return [matrix[..., None, None] for matrix in matrices]


def fprop(x, weight, bias=None, config=None):
    a, w = pixels(x, weight)
    return launch.linear.bind_fprop(a, w, bias, geometry_of(*x.shape, len(weight)), config=config)(a).flatten(1)


def dgrad(dy, weight, config=None):
    geometry = geometry_of(len(dy), *weight.shape[::-1])
    return launch.linear.dgrad(*pixels(dy, weight), geometry, config).flatten(1)


def wgrad(dy, x, config=None):
    geometry = geometry_of(*x.shape, dy.shape[1])
    return launch.linear.wgrad(*pixels(dy, x), geometry, torch.contiguous_format, config).flatten(1)


FEW = ((2, 5, 3), (3, 70, 130), (8, 64, 64), (13, 600, 33))  # M, C, K
OPS = "linear_fprop", "linear_dgrad", "linear_wgrad"


def tiles(sizes, op):
    return [config for at in ("cpu", "interpreter") for config in configs.space(op, geometry_of(*sizes), FLOATS[0], at)]


CONFIGS = [(sizes, op, config) for sizes in FEW[1:4:2] for op in OPS for config in dict.fromkeys(tiles(sizes, op))]


@pytest.mark.parametrize(("sizes", "op", "config"), CONFIGS, ids=str)
def test_every_config_is_exact(sizes, op, config):
    x, weight, bias, dy = parts(*sizes, torch.float32, "cpu")
    got, want = {
        "linear_fprop": lambda: (fprop(x, weight, bias, config), x @ weight.t() + bias),
        "linear_dgrad": lambda: (dgrad(dy, weight, config), dy @ weight),
        "linear_wgrad": lambda: (wgrad(dy, x, config), dy.t() @ x),
    }[op]()
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("sizes", FEW, ids=str)
def test_training_is_exact(sizes, dtype, device, few):
    x, weight, bias, dy = parts(*sizes, dtype, device)
    given = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = layers.linear(*given, "relu")
    truth = [t.clone().requires_grad_() for t in (x, weight, bias)]
    want = F.relu(F.linear(*truth))
    assert torch.equal(y, want)
    assert y.stride() == want.stride()
    for got, grad in zip(torch.autograd.grad(y, given, dy), torch.autograd.grad(want, truth, dy), strict=True):
        assert torch.equal(got, grad)
        assert got.stride() == grad.stride()
    if device.type == "cpu":
        assert sorted(few()) == sorted(OPS)


@pytest.mark.parametrize("dtype", FLOATS[1:3], ids=str)
def test_half_types_are_left_to_torch(dtype, few):
    x, weight, bias, _ = parts(4, 6, 5, dtype, "cpu")
    assert torch.equal(layers.linear(x, weight, bias), F.linear(x, weight, bias))
    assert few() == []


def test_derivatives(few):
    """Of the second order too, with any leading sizes."""
    x, weight, bias, _ = (t.requires_grad_() for t in parts(6, 5, 4, torch.float64, "cpu", normal))
    assert gradcheck(lambda x, w, b: layers.linear(x.view(2, 3, 5), w, b, "tanh"), (x, weight, bias))
    assert gradgradcheck(layers.linear, (x, weight, bias))
    assert set(few()) == set(OPS)


@settings(max_examples=6, deadline=None)
@drawn(st.integers(2, 64), st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_any_size(M, C, K, transposed):
    x, weight, _, dy = parts(M, C, K, torch.float32, "cpu")
    x = x.t().contiguous().t() if transposed else x
    assert torch.equal(fprop(x, weight), x @ weight.t())
    assert torch.equal(dgrad(dy, weight), dy @ weight)
    assert torch.equal(wgrad(dy, x), dy.t() @ x)


def test_convolutions_of_single_pixels_are_such_layers(device, few):
    """With all that follows a convolution."""
    x, weight, bias, _ = parts(5, 40, 24, torch.float32, device)
    x, w = x.view(5, 40, 1, 1), weight.view(24, 40, 1, 1)
    residual = integers((5, 24, 1, 1), torch.float32, device, seed=7)
    mean, gamma, beta = (integers((24,), torch.float32, device, seed=seed) for seed in (4, 5, 6))
    statistics = mean, torch.full_like(mean, 0.125), gamma, beta, False, 0.1, 0.125
    got = conv2d_batch_norm(x, w, bias, *statistics, residual=residual, activation="relu")
    want = F.relu(F.batch_norm(F.conv2d(x, w, bias), *statistics) + residual)
    assert torch.equal(got, want)
    mean, var = mean.clone(), torch.full_like(mean, 0.25)
    trained = conv2d_batch_norm(x, w.requires_grad_(), bias, mean, var, gamma, beta, True)
    wanted = F.batch_norm(F.conv2d(x, w, bias), mean.clone(), var.clone(), gamma, beta, True)
    torch.testing.assert_close(trained, wanted)
    if device.type == "cpu":
        assert few() == ["linear_fprop"] * 2


def test_small_weights_many_vectors_and_other_convolutions_are_not():
    small, large = geometry_of(8, 30, 30), geometry_of(8, 3000, 3000)
    x = torch.empty(0)
    assert launch.linear.takes(x, large)
    assert not launch.linear.takes(x, small)
    assert not launch.linear.takes(x.bfloat16(), large)
    for other in ({"N": 1}, {"N": 65}, {"H": 2}, {"groups": 2}, {"padding": ((0, 1), (0, 0))}):
        assert not launch.linear.takes(x, replace(large, **other))


def test_a_patched_classifier_in_training(few):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(True), nn.Linear(5, 3, False))
    x, model = torch.randn(3, 2, 4, 4, dtype=torch.float64), model.double()
    model(x).square().sum().backward()
    want = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    tritonconv.patch(model)(x).square().sum().backward()
    ran = few()
    assert [ran.count(op) for op in OPS] == [2, 2, 2]
    for parameter, gradient in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
