"""batch_norm and conv2d_batch_norm against torch: statistics, values, gradients of all orders."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, integers, normal
from tolerance import assert_as_good_as, assert_bounded

from tritonconv import configs, engines, launch
from tritonconv.configs import TileConfig
from tritonconv.configs.tile import MACHINES, kind_of
from tritonconv.functional import batch_norm, conv1d_batch_norm, conv2d, conv2d_batch_norm
from tritonconv.geometry import NormGeometry
from tritonconv.ops.activations import activation, canonical

SHAPE = 2, 3, 5, 4
EPS, MOMENTUM = 1e-3, 0.3


def operands(dtype, device, K=6):
    """x, weight, bias, gamma, beta, residual; then running mean and variance."""
    shapes = SHAPE, (K, 3, 3, 2), (K,), (K,), (K,), (2, K, 5, 3)
    tensors = [normal(shape, dtype, device, seed=i) for i, shape in enumerate(shapes)]
    statistics = normal((K,), dtype, device, seed=7), normal((K,), dtype, device, seed=8).abs() + 0.5
    return tensors, statistics


def ours(tensors, statistics, training, act, with_residual=True):
    x, weight, bias, gamma, beta, residual = tensors
    residual = residual if with_residual else None
    options = {"padding": (1, 0), "residual": residual, "activation": act}
    return conv2d_batch_norm(x, weight, bias, *statistics, gamma, beta, training, MOMENTUM, EPS, **options)


def torchs(tensors, statistics, training, act, with_residual=True):
    x, weight, bias, gamma, beta, residual = tensors
    y = F.conv2d(x, weight, bias, padding=(1, 0))
    y = F.batch_norm(y, *statistics, gamma, beta, training, MOMENTUM, EPS)
    y = y + residual if with_residual else y
    return y if act is None else activation(canonical(act)).apply(y)


def gradients(function, tensors, *rest):
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = function(tensors, *rest)
    dy = normal(y.shape, y.dtype, y.device, seed=9)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy, allow_unused=True)]


@pytest.mark.parametrize("with_residual", (True, False))
@pytest.mark.parametrize("act", (None, "relu", "tanh", "leaky_relu(0.3)", "elu", "silu", "hardswish", "gelu_tanh"))
@pytest.mark.parametrize("training", (True, False))
def test_values_gradients_and_running_statistics(training, act, with_residual, device):
    tensors, statistics = operands(torch.float64, device)
    mine, theirs = ([t.clone() for t in statistics] for _ in range(2))
    got = gradients(ours, tensors, mine, training, act, with_residual)
    torch.testing.assert_close(got, gradients(torchs, tensors, theirs, training, act, with_residual))
    torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        torch.testing.assert_close(ours(tensors, list(statistics), training, act, with_residual), got[0])


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("training", (True, False))
def test_errors_are_no_worse_than_torchs(training, dtype, device):
    tensors, statistics = operands(dtype, device, K=100)  # enough for a mean of errors to mean something
    wide = [t.double() for t in tensors], [t.double() for t in statistics]
    exact = gradients(torchs, wide[0], wide[1], training, "tanh")
    mine, theirs = ([t.clone() for t in statistics] for _ in range(2))
    for got, torch_value, truth in zip(
        (*gradients(ours, tensors, mine, training, "tanh"), *mine),
        (*gradients(torchs, tensors, theirs, training, "tanh"), *theirs),
        (*exact, *wide[1]),
        strict=True,
    ):
        if training and truth is exact[3]:  # the bias before a norm: its gradient is zero but for rounding
            continue
        assert_as_good_as(got, torch_value, truth)


def test_statistics_survive_cancellation(device):
    """A mean 2¹² times the deviation: Σx² − (Σx)² / M would lose all of the variance in float32."""
    x = integers((2, 3, 8, 8), torch.float32, device) + 4096
    running = torch.zeros(3, device=device), torch.zeros(3, device=device)
    batch_norm(x, *running, training=True, momentum=1.0)
    torch.testing.assert_close(running[1].double(), x.double().var((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(running[0].double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)


@pytest.mark.parametrize("memory_format", (torch.channels_last, torch.contiguous_format), ids=str)
@pytest.mark.parametrize("shape", ((2, 5, 6, 7), (1, 70, 3, 3), (3, 1, 1, 2), (2, 3, 33, 40)), ids=str)
def test_every_config(shape, memory_format, device):
    """Integers and a variance of 3: all sums are exact, and the rest is a rounding away."""
    N, C, H, W = shape
    x = integers(shape, torch.float32, device).contiguous(memory_format=memory_format)
    dy = integers(shape, torch.float32, device, seed=1).contiguous(memory_format=memory_format)
    mean, var = integers((C,), torch.float32, device), torch.full((C,), 3.0, device=device)
    given = launch.norm.Norm(mean, var, None, None, 1.0)
    target = "interpreter" if device.type == "cpu" else "sm_90"
    planar = memory_format is torch.contiguous_format
    geometry = NormGeometry(H * W, C, N, planar) if planar else NormGeometry(N * H * W, C)
    for config in {c for t in (target, "cpu") for c in configs.space("norm_apply", geometry, x.dtype, t)}:
        variance = x.double().var((0, 2, 3), correction=0)
        several = replace(config, BM=max(4, config.BM // 8), BK=3)  # tiles of a program, the last of which has fewer
        for each in (config, several):
            found = launch.norm.finalize(launch.norm.moments(x, each), N * H * W)
            torch.testing.assert_close(found[0].double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
            assert_bounded(found[1], variance, variance, N * H * W)
        y = launch.norm.apply(x, given, dy, "relu", config)
        assert torch.equal(y, ((x - mean[:, None, None]) / 2 + dy).relu())
        da = torch.where(y <= 0, 0, dy)
        _, got_da = launch.norm.backward(dy, y, x, given, None, "relu", True, None, config)
        assert torch.equal(got_da, da)
        exact = torch.stack((da.sum((0, 2, 3)), (da * (x - mean[:, None, None]) / 2).sum((0, 2, 3))))
        for each in (config, several):
            assert torch.equal(launch.norm.backward_sums(dy, y, x, given, None, "relu", each), exact)


@pytest.mark.parametrize("parts", (1, 2, 63, 64, 65, 200))
def test_parts_are_added_up_side_by_side(parts, device, monkeypatch):
    """As on a GPU, on every engine."""
    kind = kind_of(engines.engine_for(device).target(device))
    monkeypatch.setitem(MACHINES, kind, replace(MACHINES[kind], programs=132, together=64))
    launch.common.forget()
    partial, total = integers((parts, 70), torch.float32, device), torch.empty(70, device=device)
    launch.common.sum_splits(partial, total)
    assert torch.equal(total, partial.sum(0))
    x = integers((1, 70, parts, 3), torch.float32, device).contiguous(memory_format=torch.channels_last)
    found = launch.norm.finalize(launch.norm.moments(x, TileConfig(1, 64)), 3 * parts)
    exact = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close([t.double() for t in found], list(exact), rtol=1e-6, atol=1e-6)
    launch.common.forget()


def test_layouts_give_torchs_strides(device):
    for x_last, w_last, training in itertools.product((False, True), repeat=3):
        tensors, statistics = operands(torch.float32, device)
        formats = torch.channels_last if x_last else torch.contiguous_format, torch.channels_last if w_last else None
        tensors[0] = tensors[0].contiguous(memory_format=formats[0])
        tensors[1] = tensors[1].contiguous(memory_format=formats[1] or torch.contiguous_format)
        results = [f(tensors, [t.clone() for t in statistics], training, "relu", False) for f in (ours, torchs)]
        assert results[0].stride() == results[1].stride()
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("act, with_residual", ((None, True), ("sigmoid", True), ("sigmoid", False), ("gelu", False)))
@pytest.mark.parametrize("training", (True, False))
def test_gradcheck_to_the_second_order(training, act, with_residual, fast_device):
    tensors, statistics = operands(torch.float64, fast_device)
    tensors = [t.requires_grad_() for t in tensors[: 5 + with_residual]]

    def function(*tensors):
        return ours((*tensors, None)[:6], [t.clone() for t in statistics], training, act, with_residual)

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_batch_norm_alone(device):
    x, gamma, beta = (normal(s, torch.float64, device).requires_grad_() for s in (SHAPE, (3,), (3,)))
    for training in (True, False):
        mine, theirs = ([torch.zeros(3).double().to(device), torch.ones(3).double().to(device)] for _ in range(2))
        got = batch_norm(x, *mine, gamma, beta, training, activation="relu")
        want = F.batch_norm(x, *theirs, gamma, beta, training).relu()
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(mine, theirs)
        dy = normal(want.shape, want.dtype, device, seed=2)
        torch.testing.assert_close(*(torch.autograd.grad(y, (x, gamma, beta), dy) for y in (got, want)))


REFUSED = {
    "one value per channel": lambda x: ((x[:1, :, :1, :1], None, None), {"training": True}),
    "no statistics": lambda x: ((x, None, None), {}),
    "weight of another length": lambda x: ((x, None, None, x.new_ones(2)), {"training": True}),
    "weight of another dtype": lambda x: ((x, None, None, x.new_ones(3).double()), {"training": True}),
    "integers": lambda x: ((x.int(), None, None), {"training": True}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_raises_torchs_error(name, device):
    args, options = REFUSED[name](normal(SHAPE, torch.float32, device))
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)) as theirs:
        F.batch_norm(*args, **options)
    with pytest.raises(type(theirs.value)) as mine:
        batch_norm(*args, **options)
    assert str(mine.value) == str(theirs.value)


ALL = ("relu", "relu6", "leaky_relu", "leaky_relu(0.3)", "elu", "elu(0.5)", "sigmoid", "tanh", "hardsigmoid", "silu",
       "hardswish", "gelu", "gelu_tanh")  # fmt: skip


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
@pytest.mark.parametrize("act", ALL)
def test_activations_and_their_gradients(act, dtype, device):
    special = torch.tensor([0.0, -0.0, 1e-4, -1e-4, 3, -3, 6, 7, -7, 40, -40, torch.inf, -torch.inf, torch.nan])
    x = torch.cat((torch.linspace(-5, 5, 50), special)).to(device, dtype).reshape(1, 1, 8, 8).requires_grad_()
    one = torch.ones(1, 1, 1, 1, device=device, dtype=dtype)
    y = conv2d(x, one, activation=act)
    want = activation(canonical(act)).apply(x)
    (dx,) = torch.autograd.grad(y, x, torch.full_like(y, 1.5))
    (want_dx,) = torch.autograd.grad(want, x, torch.full_like(y, 1.5))
    wide = x.detach().double().requires_grad_()
    exact = activation(canonical(act)).apply(wide)
    (exact_dx,) = torch.autograd.grad(exact, wide, torch.full_like(wide, 1.5))
    with torch.no_grad():
        fused = conv2d(x, one, activation=act)
    for got, torchs_value, truth in ((y, want, exact), (fused, want, exact), (dx, want_dx, exact_dx)):
        # Infinities times zero: torch's own GELU differs between its builds.
        counts = torchs_value.isfinite() if "gelu" in act else torch.ones_like(x, dtype=torch.bool)
        got, torchs_value, truth = got[counts], torchs_value[counts], truth[counts]
        finite = torchs_value.isfinite()
        assert torch.equal(got[~finite].nan_to_num(7), torchs_value[~finite].nan_to_num(7))
        if dtype is torch.float64:
            torch.testing.assert_close(got, torchs_value, equal_nan=True)
        else:
            assert_as_good_as(got[finite], torchs_value[finite], truth[finite])


@pytest.mark.parametrize("text", ("swish", "relu(1)", "leaky_relu(-1)", "elu(x)", "elu(nan)"))
def test_no_such_activation(text):
    with pytest.raises(ValueError, match="activation must be None, slopes or one of relu, .*got"):
        conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), activation=text)


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("shape", ((3, 33, 40), (7, 33)), ids=str)
def test_one_dimension_as_torch(shape, dtype, device):
    """Values, gradients and running statistics, in evaluation and training."""
    x, dy = normal(shape, dtype, device), normal(shape, dtype, device, seed=1)
    weight, bias = normal(shape[1:2], dtype, device, seed=2), normal(shape[1:2], dtype, device, seed=3)
    for training in (False, True):
        results: list[list[torch.Tensor]] = []
        for function, kind in ((batch_norm, dtype), (F.batch_norm, dtype), (F.batch_norm, torch.float64)):
            wide = torch.float32 if kind.itemsize == 2 else kind  # of the parameters, as under autocast
            statistics = [torch.full(shape[1:2], n, dtype=wide, device=device) for n in (0.5, 2.0)]
            leaves = [x.to(kind).requires_grad_(), *(t.to(wide).requires_grad_() for t in (weight, bias))]
            y = function(leaves[0], *statistics, *leaves[1:], training, MOMENTUM, EPS)
            results.append([y, *torch.autograd.grad(y, leaves, dy.to(kind)), *statistics])
        (y, dx, dweight, dbias, *running), (y_exact, _, dweight_exact, dbias_exact, *_) = results[0], results[2]
        for got, torchs, exact in zip((y, dx), *(r[:2] for r in results[1:]), strict=True):
            assert got.stride() == torchs.stride()
            assert_as_good_as(got, torchs, exact)
        for got, exact in zip(running, results[2][4:], strict=True):  # too few for a mean of their errors
            assert_bounded(got, exact, exact.abs(), x.numel() // x.shape[1])
        normal_x = (y_exact - per_channel(bias.double(), x)) / per_channel(weight.double(), x)
        axes = (0, *range(2, x.dim()))
        assert_bounded(dweight, dweight_exact, (dy.double() * normal_x).abs().sum(axes), x.numel() // x.shape[1])
        assert_bounded(dbias, dbias_exact, dy.double().abs().sum(axes), x.numel() // x.shape[1])


def per_channel(vector, like):
    return vector.view(-1, *[1] * (like.dim() - 2))


def test_one_dimension_in_any_memory(device):
    x = normal((3, 5, 8), torch.float32, device).transpose(1, 2).contiguous().transpose(1, 2)
    mean, var = torch.zeros(5, device=device), torch.ones(5, device=device)
    got, want = (f(x, mean, var, training=False) for f in (batch_norm, F.batch_norm))
    assert got.is_contiguous() and (x.is_cuda or want.is_contiguous())  # on GPUs torch's is as x is
    torch.testing.assert_close(got, want)


CONV1D = {"stride": 1, "padding": 2, "dilation": 2}


@pytest.mark.parametrize("options", (CONV1D, CONV1D | {"stride": 2}, CONV1D | {"groups": 6}), ids=str)
@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("residual", (True, False))
def test_behind_a_1d_convolution(residual, training, options, device):
    """In float64 against torch: values, all gradients, running statistics; without gradients as well."""
    groups = options.get("groups", 1)
    shapes = (2, 6, 21), (6, 6 // groups, 3), (6,), (6,), (6,)
    tensors = [normal(shape, torch.float64, device, seed=i) for i, shape in enumerate(shapes)]
    plain = F.conv1d(*tensors[:2], **options)
    tensors.append(normal(plain.shape, torch.float64, device, seed=9) if residual else None)

    def ours(x, w, b, gamma, beta, added, statistics):
        return conv1d_batch_norm(
            x, w, b, *statistics, gamma, beta, training, MOMENTUM, EPS, **options, residual=added, activation="relu"
        )

    def torchs(x, w, b, gamma, beta, added, statistics):
        y = F.batch_norm(F.conv1d(x, w, b, **options), *statistics, gamma, beta, training, MOMENTUM, EPS)
        return (y if added is None else y + added).relu()

    results = []
    for function in (ours, torchs):
        statistics = [torch.full((6,), n, dtype=torch.float64, device=device) for n in (0.5, 2.0)]
        leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
        y = function(*leaves, statistics)
        given = [leaf for leaf in leaves if leaf is not None]
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), given), *statistics])
        with torch.no_grad():
            results[-1].append(function(*tensors, [t.clone() for t in statistics]))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    for place in (0, -1):  # with gradients and without
        assert results[0][place].stride() == results[1][place].stride()
