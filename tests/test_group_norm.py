"""group_norm and instance_norm against torch: statistics, values, gradients of all orders."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, integers, normal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerance import assert_as_good_as, assert_bounded

from tritonconv import configs, engines, launch
from tritonconv.configs.tile import MACHINES, TileConfig, kind_of
from tritonconv.functional import group_norm, instance_norm
from tritonconv.geometry import GroupGeometry
from tritonconv.ops.activations import activation, canonical
from tritonconv.ops.interior import inside

EPS = 1e-3
FORMATS = torch.channels_last, torch.contiguous_format
# Shapes and groups: of 3 channels, of one and of all, more than a vector's lanes, one pixel, one image, rows, vectors.
CASES = (
    ((2, 6, 5, 4), 2),
    ((1, 9, 3, 3), 9),
    ((3, 5, 1, 1), 1),
    ((1, 70, 3, 3), 10),
    ((2, 12, 9, 8), 4),
    ((2, 1, 3, 3), 1),
    ((2, 8, 9), 4),
    ((3, 6), 2),
)


def in_format(x, memory_format):
    return x.contiguous(memory_format=memory_format) if x.dim() == 4 else x


def activated(y, act):
    return y if act is None else activation(canonical(act)).apply(y)


def groups_by(groups):
    """Ours and torch's, of x, weight and bias."""

    def ours(act, x, weight, bias):
        return group_norm(x, groups, weight, bias, EPS, activation=act)

    def torchs(act, x, weight, bias):
        return activated(F.group_norm(x, groups, weight, bias, EPS), act)

    return ours, torchs


def by_instances(act, x, weight, bias):
    return instance_norm(x, None, None, weight, bias, eps=EPS, activation=act)


def torchs_instances(act, x, weight, bias):
    return activated(F.instance_norm(x, None, None, weight, bias, eps=EPS), act)


def operands(shape, dtype, device, memory_format=torch.contiguous_format):
    tensors = [normal(size, dtype, device, seed=i) for i, size in enumerate((shape, shape[1:2], shape[1:2]))]
    return [in_format(tensors[0], memory_format), *tensors[1:]]


def results(function, act, tensors):
    """The output and the gradients."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(act, *leaves)
    return [y, *torch.autograd.grad(y, leaves, normal(y.shape, y.dtype, y.device, seed=9))]


@pytest.mark.parametrize("act", (None, "silu"))
@pytest.mark.parametrize("shape, groups", CASES, ids=str)
def test_values_and_gradients(shape, groups, act, device):
    kinds = [groups_by(groups)] + [(by_instances, torchs_instances)] * (len(shape) > 2 and shape[-1] > 1)
    formats = FORMATS if len(shape) == 4 else FORMATS[1:]
    for (ours, torchs), memory_format in itertools.product(kinds, formats):
        tensors = operands(shape, torch.float64, device, memory_format)
        got, want = results(ours, act, tensors), results(torchs, act, tensors)
        torch.testing.assert_close(got, want)
        assert has_strides_of(got[0], want[0])
        with torch.no_grad():
            assert torch.equal(ours(act, *tensors), got[0])  # bit by bit, each time


def has_strides_of(got, want):
    return got.stride() == want.stride() or got.is_cuda and got.is_contiguous()


@pytest.mark.parametrize("act", ("relu", "leaky_relu(0.3)", "hardswish", "gelu_tanh"))
def test_activations(act, device):
    tensors = operands((2, 6, 5, 4), torch.float64, device, torch.channels_last)
    ours, torchs = groups_by(3)
    torch.testing.assert_close(results(ours, act, tensors), results(torchs, act, tensors))


def test_slopes_of_a_prelu(device):
    x, weight, bias = operands((2, 6, 5, 4), torch.float64, device)
    slope = normal((6,), torch.float64, device, seed=4).requires_grad_()
    got = group_norm(x, 3, weight, bias, EPS, activation=slope)
    want = F.prelu(F.group_norm(x, 3, weight, bias, EPS), slope)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), slope) for y in (got, want)))


@pytest.mark.parametrize("affine", ((True, False), (False, True), (False, False)), ids=str)
def test_without_weight_or_bias(affine, device):
    x, *parameters = operands((2, 6, 5, 4), torch.float64, device)
    given = [t.requires_grad_() if there else None for t, there in zip(parameters, affine, strict=True)]
    leaves = [x.requires_grad_(), *(t for t in given if t is not None)]
    alike = given[0] if affine[0] else torch.ones_like(parameters[0]), given[1]  # torch has no gradient of a bias alone
    for ours, torchs in (groups_by(2), (by_instances, torchs_instances)):
        outputs = ours("tanh", x, *given), torchs("tanh", x, *alike)
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), leaves) for y in outputs))


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
def test_errors_are_no_worse_than_torchs(dtype, device):
    for (ours, torchs), memory_format in zip((groups_by(20), (by_instances, torchs_instances)), FORMATS, strict=True):
        tensors = operands((2, 60, 9, 7), dtype, device, memory_format)
        got, theirs = (results(function, "silu", tensors) for function in (ours, torchs))
        exact = results(torchs, "silu", [t.double() for t in tensors])
        for each in zip(got, theirs, exact, strict=True):
            assert_as_good_as(*each)


def test_parameters_in_float32_beside_a_half_type(device):
    x = normal((2, 6, 5, 4), torch.bfloat16, device)
    weight, bias = (normal((6,), torch.float32, device, seed=i) for i in (1, 2))
    for ours, torchs in (groups_by(2), (by_instances, torchs_instances)):
        try:
            want = results(torchs, "relu", [x, weight, bias])
        except RuntimeError as error:  # as torch's group norm on GPUs
            with pytest.raises(RuntimeError, match=str(error)[:20]):
                results(ours, "relu", [x, weight, bias])
            continue
        for got, theirs in zip(results(ours, "relu", [x, weight, bias]), want, strict=True):
            torch.testing.assert_close(got, theirs, rtol=0.05, atol=0.05)


def test_statistics_survive_cancellation(device):
    """A mean 2¹² times the deviation: Σx² − (Σx)² / M would lose all of the variance in float32."""
    x = integers((2, 6, 8, 8), torch.float32, device) + 4096
    for groups, memory_format in itertools.product((2, 6), FORMATS):
        mean, var = launch.group_norm.finalize(
            launch.norm.moments(in_format(x, memory_format), groups=groups), 2, groups
        )
        grouped = x.double().view(2, groups, -1)
        exact = grouped.mean(2), grouped.var(2, correction=0)
        for got, truth in zip((mean, var), exact, strict=True):
            assert got.shape == (2, groups, 6 // groups) and (got == got[..., :1]).all()
            torch.testing.assert_close(got[..., 0].double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize(
    "shape, groups", (((2, 6, 6, 7), 2), ((1, 70, 3, 3), 70), ((3, 3, 1, 2), 1), ((2, 4, 17, 20), 2)), ids=str
)
def test_every_config(shape, groups, memory_format, device):
    """Integers and a variance of 3: all sums are exact, and the rest is a rounding away."""
    N, C, H, W = shape
    x, dy = (in_format(integers(shape, torch.float32, device, seed=seed), memory_format) for seed in (0, 1))
    weight = integers((C,), torch.float32, device, seed=2)
    mean = integers((N, groups, 1), torch.float32, device).expand(N, groups, C // groups).contiguous()
    given = launch.norm.Norm(mean, torch.full_like(mean, 3.0), weight, None, 1.0)
    normal_x = (x - mean.view(N, C, 1, 1)) / 2
    grouped = x.double().reshape(N, groups, -1)
    variance, values = grouped.var(2, correction=0), grouped.shape[2]
    geometry = GroupGeometry(H * W, C, N, memory_format is torch.contiguous_format, groups)
    target = "interpreter" if device.type == "cpu" else "sm_90"
    for config in {c for t in (target, "cpu") for c in configs.space("norm_apply", geometry, x.dtype, t)}:
        several = replace(config, BM=max(4, config.BM // 8), BK=3)  # tiles of a program, the last of which has fewer
        for each in (config, several):
            found = launch.group_norm.finalize(launch.norm.moments(x, each, groups), N, groups)
            torch.testing.assert_close(found[0][..., 0].double(), grouped.mean(2), rtol=1e-6, atol=1e-6)
            assert_bounded(found[1][..., 0], variance, variance, values)
        y = launch.norm.apply(x, given, None, "relu", config)
        assert torch.equal(y, (normal_x * weight[:, None, None]).relu())
        da = torch.where(y <= 0, 0, dy)
        exact = torch.stack((da.sum((2, 3)), (da * normal_x).sum((2, 3))), 1)
        for each in (config, several):
            assert torch.equal(launch.norm.backward_sums(dy, y, x, given, None, "relu", each), exact)
        means = launch.group_norm.means(exact, weight, H * W, groups)
        whole = (exact * weight).view(N, 2, groups, -1).sum(3).transpose(0, 1) / values
        torch.testing.assert_close(means.view(2, N, groups, -1)[..., 0], whole, rtol=1e-6, atol=1e-6)
        dx, got_da = launch.norm.backward(dy, y, x, given, None, "relu", True, means, config)
        assert torch.equal(got_da, da)
        mean_da, mean_dax = (t.view(N, C, 1, 1) for t in means)
        torch.testing.assert_close(dx, (da * weight[:, None, None] - mean_da - normal_x * mean_dax) / 2)


@pytest.mark.parametrize("parts, groups", ((1, 70), (3, 2), (9, 5)))
def test_parts_are_merged_side_by_side(parts, groups, device, monkeypatch):
    """As on a GPU, on every engine."""
    kind = kind_of(engines.engine_for(device).target(device))
    monkeypatch.setitem(MACHINES, kind, replace(MACHINES[kind], programs=132, together=64))
    launch.common.forget()
    x = in_format(integers((2, 70, parts, 3), torch.float32, device), torch.channels_last)
    weight = integers((70,), torch.float32, device, seed=1)
    found = launch.group_norm.finalize(launch.norm.moments(x, TileConfig(1, 64), groups), 2, groups)
    grouped = x.double().reshape(2, groups, -1)
    exact = [grouped.mean(2), grouped.var(2, correction=0)]
    torch.testing.assert_close([t[..., 0].double() for t in found], exact, rtol=1e-6, atol=1e-6)
    sums = integers((2, 2, 70), torch.float32, device)
    means = launch.group_norm.means(sums, weight, 4, groups).view(2, 2, groups, -1)
    whole = (sums * weight).view(2, 2, groups, -1)
    torch.testing.assert_close(means, (whole.mean(3, keepdim=True) / 4).transpose(0, 1).expand_as(means))
    launch.common.forget()


@pytest.mark.parametrize("act, memory_format", [*zip((None, "gelu"), FORMATS, strict=True)], ids=str)
def test_gradcheck_to_the_second_order(act, memory_format, fast_device):
    tensors = [t.requires_grad_() for t in operands((2, 6, 3, 2), torch.float64, fast_device, memory_format)]
    for ours, _ in (groups_by(2), (by_instances, None)):
        function = lambda *tensors, ours=ours: ours(act, *tensors)  # noqa: E731
        assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_running_statistics_of_instances(dtype, device):
    x, weight, bias = operands((3, 4, 5, 6), dtype, device, torch.channels_last)
    running = normal((4,), dtype, device, seed=7), torch.full((4,), 2.0, dtype=dtype, device=device)
    mine, theirs = ([t.clone() for t in running] for _ in range(2))
    for use_input_stats, momentum in ((True, 0.3), (True, 0.0), (False, 0.3)):
        rest = weight, bias, use_input_stats, momentum, EPS
        got, want = instance_norm(x, *mine, *rest, activation="relu"), F.instance_norm(x, *theirs, *rest).relu()
        torch.testing.assert_close([got, *mine], [want, *theirs])
        assert got.stride() == want.stride()


REFUSED = {
    "groups that do not divide the channels": (group_norm, F.group_norm, lambda x: (x, 4)),
    "no groups": (group_norm, F.group_norm, lambda x: (x, 0)),
    "one value": (group_norm, F.group_norm, lambda x: (x[:1, :, :1, :1], 6)),
    "weight of another length": (group_norm, F.group_norm, lambda x: (x, 2, x.new_ones(2))),
    "weight of another dtype": (group_norm, F.group_norm, lambda x: (x, 2, x.new_ones(6).double())),
    "integers": (group_norm, F.group_norm, lambda x: (x.int(), 2)),
    "images of one pixel": (instance_norm, F.instance_norm, lambda x: (x[:, :, :1, :1],)),
    "no statistics": (instance_norm, F.instance_norm, lambda x: (x, None, None, None, None, False)),
    "vectors": (instance_norm, F.instance_norm, lambda x: (x[:, :, 0, 0],)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_raises_torchs_error(name, device):
    ours, torchs, arguments = REFUSED[name]
    given = arguments(normal((2, 6, 5, 4), torch.float32, device))
    with pytest.raises((ValueError, RuntimeError, NotImplementedError, ZeroDivisionError)) as theirs:
        torchs(*given)
    with pytest.raises(type(theirs.value)) as mine:
        ours(*given)
    assert str(mine.value) == str(theirs.value)


@pytest.mark.parametrize("shape", ((0, 6, 4, 4), (2, 6, 0, 4), (2, 6, 3, 2, 4)), ids=str)
def test_other_shapes_are_torchs(shape, device):
    x = torch.randn(shape, device=device)
    assert torch.equal(instance_norm(x, activation="relu"), F.instance_norm(x).relu())
    try:
        want = F.group_norm(x, 2).relu()
    except RuntimeError as error:  # of no pixels, in later versions
        with pytest.raises(RuntimeError, match=str(error)):
            group_norm(x, 2, activation="relu")
    else:
        assert torch.equal(group_norm(x, 2, activation="relu"), want)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(*(st.integers(1, most) for most in (3, 4, 5, 9, 9))),
    memory_format=st.sampled_from(FORMATS),
    act=st.sampled_from((None, "relu", "silu")),
)
def test_images_and_groups_are_normalized_by_themselves(sizes, memory_format, act, device):
    N, groups, channels, H, W = sizes
    x = in_format(integers((N, groups * channels, H, W), torch.float64, device), memory_format)
    got = group_norm(x, groups, eps=EPS, activation=act) if N * channels * H * W > 1 else torch.zeros_like(x)
    flat = x.reshape(N, groups, -1)
    deviation = (flat.var(2, correction=0, keepdim=True) + EPS).sqrt()
    exact = activated((flat - flat.mean(2, keepdim=True)) / deviation, act).view_as(x)
    torch.testing.assert_close(got, exact)


@pytest.mark.skipif(not {"native", "interpreter"} <= {*engines.available()}, reason="of engines on CPUs")
def test_engines_agree():
    x, weight, bias = operands((2, 12, 7, 5), torch.float32, "cpu", torch.channels_last)
    found = []
    for name in ("native", "interpreter"):
        with engines.use(name):
            found.append(results(groups_by(4)[0], "silu", [x, weight, bias]))
    torch.testing.assert_close(*found)


def test_instance_norm_keeps_channels_last_memory_where_nobody_sees():
    x = torch.randn(2, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    outside = instance_norm(x)
    with inside():
        within = instance_norm(x)
    assert outside.is_contiguous() and within.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(outside, within)
