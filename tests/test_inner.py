"""An activation right behind the bias, before norm and residual: `inner`."""

import pytest
import torch
import torch.nn.functional as F

from tritonconv import engines, functional, launch

# The kernels that have it, by what makes a call theirs: sizes of input and weight, options.
CALLS = {
    "implicit GEMM": ((2, 3, 7, 6), (8, 3, 3, 2), {"stride": 2}),
    "depthwise": ((2, 8, 6, 7), (8, 1, 3, 3), {"groups": 8, "padding": 1}),
    "Winograd": ((1, 8, 9, 8), (8, 8, 3, 3), {"padding": 1}),
    "1-D": ((2, 5, 11), (8, 5, 3), {"padding": 2, "dilation": 2}),
    "1-D with a stride": ((2, 5, 11), (8, 5, 3), {"stride": 2}),
}


def problem(name, dtype=torch.float32):
    """Input, weight, bias, a residual, statistics that divide by one, and options: small integers."""
    size, window, options = CALLS[name]
    generator = torch.Generator().manual_seed(1)

    def integers(*shape):
        return torch.randint(-3, 4, shape, generator=generator).to(dtype)

    x, w, b = integers(*size), integers(*window), integers(window[0])
    r = integers(*_conv(x)(x, w, b, **options).shape)
    norm = integers(8), torch.ones(8, dtype=dtype), integers(8), integers(8)
    return x, w, b, r, norm, options


def _conv(x):
    return F.conv1d if x.dim() == 3 else F.conv2d


def _fused(x, suffix=""):
    return getattr(functional, f"conv{x.dim() - 2}d{suffix}")


def by_torch(x, w, b, r, norm, options):
    y = F.relu(_conv(x)(x, w, b, **options))
    y = y if norm is None else F.batch_norm(y, *norm, eps=0.0)
    return F.relu6(y if r is None else y + r)


@pytest.fixture
def winograd(monkeypatch):
    monkeypatch.setattr(launch.conv, "by_winograd", lambda op, x, geometry, config: geometry.R == geometry.S == 3)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("residual", [False, True])
def test_exact(name, residual, device, request):
    if name == "Winograd":
        request.getfixturevalue("winograd")
    x, w, b, r, norm, options = (t.to(device) if isinstance(t, torch.Tensor) else t for t in problem(name))
    norm, r = tuple(t.to(device) for t in norm), r if residual else None
    given = {"inner": "relu", "residual": r, "activation": "relu6", **options}
    near = {"rtol": 0, "atol": 1e-3 if name == "Winograd" else 0}  # which computes with fractions
    torch.testing.assert_close(_fused(x)(x, w, b, **given), by_torch(x, w, b, r, None, options), **near)
    got = _fused(x, "_batch_norm")(x, w, b, *norm, eps=0.0, **given)
    torch.testing.assert_close(got, by_torch(x, w, b, r, norm, options), **near)


@pytest.mark.parametrize("name", ["implicit GEMM", "1-D"])
@pytest.mark.parametrize("training", [False, True])
def test_with_gradients_it_is_as_torchs(name, training):
    x, w, b, r, (mean, var, *affine), options = problem(name, torch.float64)
    given = {"inner": "tanh", "residual": r, "activation": "sigmoid", **options}
    leaves = [t.requires_grad_() for t in (x, w, b, r, *affine)]

    def norm(x, w, b, r, *affine):
        statistics = mean.clone(), var.clone()
        return _fused(x, "_batch_norm")(x, w, b, *statistics, *affine, training, **given | {"residual": r})

    torch.autograd.gradcheck(norm, leaves, fast_mode=True)
    without = lambda x, w, b, r: _fused(x)(x, w, b, **given | {"residual": r})  # noqa: E731
    torch.autograd.gradcheck(without, leaves[:4], fast_mode=True)


def test_what_is_not_fused():
    """PReLU of slopes that learn, max-pooling behind it, and what no kernel takes."""
    x, w, b, _, _, options = problem("implicit GEMM", torch.float64)
    y = F.conv2d(x, w, b, **options)
    slopes = torch.full((8,), 0.3, dtype=torch.float64, requires_grad=True)
    got = functional.conv2d(x, w, b, inner="tanh", activation=slopes, **options)
    torch.testing.assert_close(got, F.prelu(y.tanh(), slopes))
    (ours,) = torch.autograd.grad(got.sum(), slopes)
    (want,) = torch.autograd.grad(F.prelu(y.tanh(), slopes).sum(), slopes)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(
        functional.conv2d(x, w, b, inner="tanh", max_pool=2, **options), F.max_pool2d(y.tanh(), 2)
    )
    integers = [t.to(torch.int64) for t in (x, w, b)]
    got = functional.conv2d(*integers, inner="relu", **options)
    assert torch.equal(got, F.relu(F.conv2d(*integers, **options)))
    with pytest.raises(ValueError, match="activation must be None, slopes or one of"):
        functional.conv2d(x, w, b, inner="square")


def test_one_kernel_without_gradients():
    x, w, b, r, norm, options = problem("1-D")
    with engines.listing(x.device) as launches:
        functional.conv1d_batch_norm(x, w, b, *norm, inner="relu", residual=r, activation="relu", **options)
    assert len(launches) == 1


def test_under_torch_compile():
    x, w, b, r, norm, options = problem("implicit GEMM")

    def run(x):
        return functional.conv2d_batch_norm(x, w, b, *norm, inner="relu", residual=r, activation="relu6", **options)

    with torch.no_grad():
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), run(x))
