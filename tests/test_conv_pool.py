"""Convolution, activation and max-pooling in one kernel against torch's three: values, places, gradients, memory."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import CONV_CASES, FLOATS, ConvCase, integers, normal
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tritonconv import configs, launch
from tritonconv.configs import TileConfig
from tritonconv.functional import conv2d
from tritonconv.geometry import ConvGeometry
from tritonconv.launch import conv_pool
from tritonconv.launch.norm import Norm
from tritonconv.ops import activations

DENSE = ConvCase((2, 5, 9, 10), (6, 3, 2), stride=(1, 2), padding=(1, 0))  # an output of 9 × 5
WINDOWS = ((2, 2), (2, 3), (1, 2), (4, 1))


def operands(case, make, dtype, device):
    return [make(shape, dtype, device, seed=i) for i, shape in enumerate((case.input, case.weight, case.weight[:1]))]


def torchs(activation, window):
    def run(x, weight, bias, **options):
        y = F.conv2d(x, weight, bias, **options)
        return F.max_pool2d(y if activation is None else activations.activation(activation).apply(y), window)

    return run


def ours(activation, window):
    return lambda *tensors, **options: conv2d(*tensors, **options, activation=activation, max_pool=window)


def results(function, tensors, case, dy=None):
    """[y, dx, dw, db]"""
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = function(*tensors, **case.options)
    dy = integers(y.shape, y.dtype, y.device, seed=3) if dy is None else dy
    return [y.detach(), *torch.autograd.grad(y, tensors, dy)]


def windows_of(geometry: ConvGeometry):
    return [window for window in WINDOWS if window[0] <= geometry.P and window[1] <= geometry.Q]


def places(indices, window, Q):
    """As a byte of each window: u·(columns of a window) + v, of the places h·W + w that torch gives."""
    return (indices // Q % window[0] * window[1] + indices % Q % window[1]).to(torch.uint8)


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


# Every case that leaves a window in float32 and in one other dtype.
POOLED = [case for case in CONV_CASES if windows_of(case.geometry)]
EXACT = [(case, FLOATS[0]) for case in POOLED] + list(zip(POOLED, itertools.cycle(FLOATS[1:]), strict=False))


@pytest.mark.parametrize(("case", "dtype"), EXACT, ids=str)
def test_integers_are_exact(case, dtype, device):
    """Few distinct values: most windows hold ties, and ReLU makes more."""
    tensors = operands(case, integers, dtype, device)
    for window in windows_of(case.geometry)[:2]:
        got = results(ours("relu", window), tensors, case)
        exact = results(torchs("relu", window), [t.double().cpu() for t in tensors], case)
        for name, a, b in zip(("y", "dx", "dw", "db"), got, exact, strict=True):
            assert torch.equal(a.cpu(), b.to(dtype)), name


TARGETS = ("interpreter", "cpu", "sm_90", "gfx942")
WIDE = ConvCase((2, 70, 9, 8), (72, 3, 1), stride=(2, 1), padding=(1, 0))  # an output of 5 × 8
FIRSTS = WIDE.geometry.firsts((2, 2))
SPACE = {
    op: list(
        dict.fromkeys(
            config
            for target in TARGETS
            for dtype in (torch.float16, torch.float32, torch.float64)
            for config in configs.space(op, geometry, dtype, target)
        )
    )
    for op, geometry in (("fprop", FIRSTS), ("max_pool", conv_pool.pooling(WIDE.geometry, (2, 2))))
}


def test_the_first_outputs_of_windows_are_a_convolution_too():
    x, weight, _ = operands(WIDE, integers, torch.float64, "cpu")
    y = F.conv2d(x, weight, **WIDE.options)
    assert FIRSTS.output == (2, 72, 2, 4)
    assert torch.equal(launch.conv.fprop(x, weight, None, FIRSTS), y[:, :, :4:2, ::2])


@pytest.mark.parametrize("config", [*SPACE["fprop"], TileConfig(32, 16, 16, GROUP_M=3)], ids=str)
def test_every_config_is_exact(config, device):
    x, weight, bias = operands(WIDE, integers, torch.float32, device)
    y, taps = conv_pool.fprop_with_taps(x, weight, bias, WIDE.geometry, (2, 2), "relu", True, config)
    z, indices = F.max_pool2d(F.conv2d(x, weight, bias, **WIDE.options), 2, return_indices=True)
    assert torch.equal(y, F.relu(z))
    assert torch.equal(taps, places(indices, (2, 2), 8))


@pytest.mark.parametrize("config", SPACE["max_pool"], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_config_of_the_way_back_is_exact(config, dtype, device):
    z = integers((2, 72, 5, 8), dtype, device).requires_grad_()
    y, indices = F.max_pool2d(z, 2, return_indices=True)
    dy = integers(y.shape, dtype, device, seed=1)
    dz = conv_pool.spread(dy, places(indices, (2, 2), 8), conv_pool.pooling(WIDE.geometry, (2, 2)), config)
    assert torch.equal(dz, torch.autograd.grad(y, z, dy)[0])


@pytest.mark.parametrize("special", (float("nan"), float("-inf"), float("inf"), -0.0))
def test_special_values(special, device):
    """A 1 × 1 convolution by one: what is pooled is what is given, a window at a time or in part."""
    x = integers((2, 3, 6, 7), torch.float32, device)
    x[0, 0] = special
    x[0, 1, 2:4, 2:5] = special
    x[1, 2, ::3, ::2] = special
    weight = torch.ones(3, 1, 1, 1, device=device)
    geometry = ConvGeometry(2, 3, 6, 7, 3, 1, 1, groups=3)
    y, taps = conv_pool.fprop_with_taps(x, weight, None, geometry, (2, 2))
    want, indices = F.max_pool2d(x, 2, return_indices=True)
    assert same(y, want)
    assert torch.equal(taps, places(indices, (2, 2), 7))


MONOTONE = ("relu", "relu6", "sigmoid", "tanh", "hardsigmoid", "leaky_relu(0.2)", "elu(1.0)")


@pytest.mark.parametrize("activation", (*MONOTONE, "silu", None))
def test_activations(activation, device):
    assert activation is None or activations.is_monotone(activation) == (activation in MONOTONE)
    tensors = operands(DENSE, normal, torch.float64, device)
    tensors[1] *= 3  # as far as where some of them stop to rise
    for got, want in zip(
        results(ours(activation, 2), tensors, DENSE), results(torchs(activation, 2), tensors, DENSE), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("layout", ("nchw", "channels_last", "unbatched"))
@pytest.mark.parametrize("window", (2, [2, 3], (1, 2)), ids=str)
def test_layouts_and_windows(layout, window, device):
    x, weight, bias = operands(DENSE, integers, torch.float32, device)
    x = x[0] if layout == "unbatched" else x
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    with torch.no_grad():
        alone = conv2d(x, weight, bias, **DENSE.options, max_pool=window)
    got, want = (f(None, window)(x, weight.requires_grad_(), bias, **DENSE.options) for f in (ours, torchs))
    assert torch.equal(got, want)
    assert torch.equal(alone, want)
    assert got.stride() == alone.stride() == want.stride()


@pytest.mark.parametrize("case", (DENSE, ConvCase((2, 4, 7, 7), (4, 3, 3), groups=4)), ids=("dense", "depthwise"))
def test_a_residual_and_what_has_no_such_kernel(case, device):
    x, weight, bias = operands(case, integers, torch.float32, device)
    y = F.conv2d(x, weight, bias, **case.options)
    residual = integers(y.shape, torch.float32, device, seed=4)
    got = conv2d(x, weight, bias, **case.options, residual=residual, activation="relu", max_pool=2)
    assert torch.equal(got, F.max_pool2d(F.relu(y + residual), 2))
    assert torch.equal(conv2d(x, weight, bias, **case.options, max_pool=2), F.max_pool2d(y, 2))


def test_windows_that_do_not_fit_raise_torchs_error(device):
    x, weight, _ = operands(DENSE, integers, torch.float32, device)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        conv2d(x, weight, **DENSE.options, max_pool=10)
    with pytest.raises(RuntimeError, match="should not be zero"):
        conv2d(x, weight, **DENSE.options, max_pool=0)


def test_norm_with_negative_scales(device):
    """It comes before the maximum: where gamma is negative the least output wins."""
    x, weight, bias = operands(DENSE, normal, torch.float64, device)
    mean, var, gamma, beta = (normal(bias.shape, torch.float64, device, seed=i) for i in range(4, 8))
    norm = Norm(mean, var.square() + 0.1, gamma, beta, 1e-3)
    z = F.batch_norm(F.conv2d(x, weight, bias, **DENSE.options), mean, norm.var, gamma, beta, eps=norm.eps)
    y = conv_pool.fprop(x, weight, bias, DENSE.geometry, (2, 2), "relu", norm=norm)
    assert (gamma < 0).any()
    torch.testing.assert_close(y, F.max_pool2d(F.relu(z), 2))


def test_half_types_compare_what_they_store(device):
    """Sums that differ in float32 alone are a tie, of which the first counts."""
    x = torch.tensor([256.0, 257.0, 1.0, 0.0], device=device, dtype=torch.bfloat16).reshape(1, 1, 2, 2)
    geometry = ConvGeometry(1, 1, 2, 2, 1, 1, 1)
    bias = torch.tensor([0.5], device=device, dtype=torch.bfloat16)
    weight = torch.ones(1, 1, 1, 1, device=device, dtype=torch.bfloat16)
    y, taps = conv_pool.fprop_with_taps(x, weight, bias, geometry, (2, 2))
    assert y.item() == 256
    assert taps.item() == 0


@pytest.mark.parametrize("case", (ConvCase((1, 2, 5, 4), (2, 2, 2), padding=(1, 0)), CONV_CASES[8]), ids=str)
def test_gradcheck_to_the_second_order(case, fast_device):
    tensors = [t.requires_grad_() for t in operands(case, normal, torch.float64, fast_device)]

    def function(x, weight, bias):
        return ours("tanh", 2)(x, weight, bias, **case.options)

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("needed", [n for n in itertools.product((False, True), repeat=3) if any(n)], ids=str)
def test_every_subset_of_requires_grad(needed, device):
    tensors = operands(DENSE, integers, torch.float32, device)
    tensors = [t.requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
    wanted = [t for t in tensors if t.requires_grad]
    got, want = (torch.autograd.grad(f("relu", 2)(*tensors, **DENSE.options).sum(), wanted) for f in (ours, torchs))
    assert all(map(torch.equal, got, want))


def test_a_byte_is_kept_of_each_maximum_and_nothing_of_the_rest():
    x, weight, bias = operands(DENSE, normal, torch.float32, "cpu")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = ours("relu", (2, 2))(x, weight.requires_grad_(), bias, **DENSE.options)
    (taps,) = (t for t in kept if t.dtype is torch.uint8)
    assert taps.shape == y.shape == (2, 6, 4, 2)
    assert sum(t.nbytes for t in kept if t.shape not in (x.shape, weight.shape)) == y.numel() * (4 + 1)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(3, 9), st.integers(3, 9), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_pooling_in_the_kernel_is_pooling(sizes, kernel, stride, padding, window, device):
    *input, K = sizes
    case = ConvCase(tuple(input), (K, *kernel), stride, padding)
    assume(window[0] <= case.geometry.P and window[1] <= case.geometry.Q)
    tensors = operands(case, integers, torch.float32, device)
    for got, want in zip(
        results(ours("relu", window), tensors, case), results(torchs("relu", window), tensors, case), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("OUT", (2, 4))
@pytest.mark.parametrize("window", ((2, 2), (1, 2)), ids=str)
def test_winograds_tiles_are_pooled_too(OUT, window, device):
    """Outputs of 7 × 9 fill no tile, and leave a row and a column in no window."""
    case = ConvCase((2, 5, 7, 9), (6, 3, 3), padding=(1, 1))
    x, weight, bias = operands(case, normal, torch.float64, device)
    config = TileConfig(8, 4, 16 if device.type == "cuda" else 2, OUT=OUT)
    run = launch.winograd.bind_max_pool(x, weight, bias, case.geometry, window, "relu", config=config)
    z, indices = F.max_pool2d(F.conv2d(x, weight, bias, padding=1), window, return_indices=True)
    taps = torch.zeros(z.shape, dtype=torch.uint8, device=device).contiguous(memory_format=torch.channels_last)
    y = run(x, taps)
    torch.testing.assert_close(y, F.relu(z))
    assert torch.equal(taps, places(indices, window, 9))
    assert torch.equal(run(x), y)


def test_derivatives_where_winograds_algorithm_runs(monkeypatch):
    monkeypatch.setattr(configs, "algorithm", lambda *problem: "winograd")
    case = ConvCase((1, 2, 5, 6), (3, 3, 3), padding=(1, 1))
    tensors = operands(case, normal, torch.float64, "cpu")
    for got, want in zip(
        results(ours("tanh", 2), tensors, case), results(torchs("tanh", 2), tensors, case), strict=True
    ):
        torch.testing.assert_close(got, want)
