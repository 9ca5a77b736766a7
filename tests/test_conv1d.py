"""conv1d and causal_conv1d against torch: exact sums, strides, gradients of all orders, refusals, patched modules."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, integers, normal
from torch import nn

import tritonconv
from tritonconv.functional import causal_conv1d, conv1d

# input [N, C, W], weight [K, C/groups, S], options
CASES = (
    ((2, 3, 9), (4, 3, 3), {"padding": 1}),
    ((1, 5, 11), (5, 1, 4), {"stride": 2, "padding": (2,), "dilation": [2], "groups": 5}),
    ((2, 4, 8), (6, 2, 1), {"stride": (3,), "groups": 2}),
    ((1, 2, 7), (3, 2, 4), {"padding": "same", "dilation": 2}),
    # Those of the kernels that leave the memory format as it is.
    ((2, 6, 20), (7, 6, 3), {"padding": 2, "dilation": 3}),
    ((2, 10, 9), (14, 5, 2), {"groups": 2}),
    ((1, 40, 70), (33, 40, 1), {}),
    ((3, 5, 4), (8, 5, 4), {"padding": 9}),
    ((2, 6, 21), (8, 6, 5), {"stride": 2, "padding": 3}),
    ((1, 10, 17), (12, 5, 4), {"stride": 3, "dilation": 2, "groups": 2}),
)


def operands(input, weight, make=integers, dtype=torch.float32, device="cpu"):
    return [make(shape, dtype, device, seed=i) for i, shape in enumerate((input, weight, weight[:1]))]


def results(function, tensors, dy=None, **options):
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = function(*tensors, **options)
    dy = integers(y.shape, y.dtype, y.device, seed=3) if dy is None else dy
    return [y.detach(), *torch.autograd.grad(y, tensors, dy.to(y))]


def causal_reference(x, weight, bias=None, dilation=1, groups=1):
    return F.conv1d(F.pad(x, (dilation * (weight.shape[2] - 1), 0)), weight, bias, dilation=dilation, groups=groups)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(c, FLOATS[0]) for c in CASES] + list(zip(CASES, FLOATS[1:], strict=False)) + [(CASES[4], d) for d in FLOATS[1:]],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_integer_sums_are_exact(case, dtype, device):
    *shapes, options = case
    tensors = operands(*shapes, dtype=dtype, device=device)
    exact = results(F.conv1d, [t.double().cpu() for t in tensors], **options)
    for name, got, want in zip(("y", "dx", "dw", "db"), results(conv1d, tensors, **options), exact, strict=True):
        assert torch.equal(got.cpu(), want.to(dtype)), name
    with torch.no_grad():
        assert torch.equal(conv1d(*tensors, **options).cpu(), exact[0].to(dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("dilation", "groups"), ((1, 1), (3, 1), (2, 2), (2, 12)))
def test_causal_sums_are_exact(dilation, groups, dtype, device):
    tensors = operands((2, 12, 7), (24, 12 // groups, 3), dtype=dtype, device=device)
    options = {"dilation": dilation, "groups": groups}
    exact = results(causal_reference, [t.double().cpu() for t in tensors], **options)
    for got, want in zip(results(causal_conv1d, tensors, **options), exact, strict=True):
        assert torch.equal(got.cpu(), want.to(dtype))


def test_causal_sums_know_nothing_of_what_comes_later(device):
    x, weight, bias = operands((1, 3, 8), (2, 3, 3), normal, device=device)
    y = causal_conv1d(x, weight, bias, dilation=2)
    x[:, :, 5:] = float("nan")
    later = causal_conv1d(x, weight, bias, dilation=2)
    assert torch.equal(later[:, :, :5], y[:, :, :5])
    assert later[:, :, 5:].isnan().all()


LAYOUTS = {
    "ncw": torch.Tensor.contiguous,
    "nwc": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "sliced": lambda x: torch.cat((x, x), 2)[..., ::2][..., : x.shape[2]].copy_(x),
}


@pytest.mark.parametrize(("x_layout", "w_layout"), list(itertools.product(LAYOUTS, ("ncw", "nwc"))))
@pytest.mark.parametrize("shape", ((2, 3, 9), (2, 1, 9), (1, 3, 2), (2, 6, 9), (1, 6, 2)), ids=str)
def test_layouts_give_torchs_values_and_strides(shape, x_layout, w_layout, device):
    x = LAYOUTS[x_layout](integers(shape, torch.float32, device))
    weight = LAYOUTS[w_layout](integers((5, shape[1], 2), torch.float32, device))
    for input in (x, x[0]):
        got, want = conv1d(input, weight), F.conv1d(input, weight)
        assert torch.equal(got, want)
        assert got.stride() == want.stride()
        assert torch.equal(causal_conv1d(input, weight), causal_reference(input, weight))


def test_gradient_of_a_weight_has_its_strides(device):
    for layout in ("ncw", "nwc"):
        weight = LAYOUTS[layout](integers((6, 5, 3), torch.float32, device)).requires_grad_()
        (dw,) = torch.autograd.grad(conv1d(integers((2, 5, 6), torch.float32, device), weight).sum(), weight)
        assert dw.stride() == weight.stride()


@pytest.mark.parametrize("extra", ((2, 0), (0, -2), (3, 1), (-1, 2)), ids=str)
@pytest.mark.parametrize("channels", (2, 6))
def test_extra_padding(extra, channels, device):
    """What `pad` adds before, and what slicing takes off the result."""

    def reference(x, weight, bias):
        before, after = extra
        if before < 0:
            return F.conv1d(F.pad(x, (2 + before, 2 + after)), weight, bias)
        return F.conv1d(F.pad(x, (before, max(after, 0))), weight, bias, padding=2)[..., : after if after < 0 else None]

    tensors = operands((2, channels, 7), (6, channels, 3), dtype=torch.float64, device=device)
    got = results(conv1d, tensors, padding=2, extra_padding=extra)
    for ours, want in zip(got, results(reference, tensors), strict=True):
        assert torch.equal(ours, want)


def test_extra_padding_by_torch():
    """Of integers, which no kernel takes."""
    x, weight = integers((2, 6, 9), torch.int64), integers((6, 6, 3), torch.int64)  # nor torch on GPUs
    before, after = (conv1d(x, weight, padding=1, extra_padding=extra) for extra in ((2, 0), (0, -1)))
    assert torch.equal(before, F.conv1d(F.pad(x, (2, 0)), weight, padding=1))
    assert torch.equal(after, F.conv1d(x, weight, padding=1)[..., :-1])


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("shape", ((2, 6, 9), (6, 9)), ids=str)
def test_residual(shape, training, device):
    x, weight, bias = operands((2, 6, 9), (6, 6, 3), dtype=torch.float64, device=device)
    x, residual = x[: len(x)] if len(shape) == 3 else x[0], integers(shape, torch.float64, device, seed=4)
    tensors = x, weight, bias, residual
    ours = lambda x, w, b, r: conv1d(x, w, b, padding=1, residual=r, activation="relu")  # noqa: E731
    torchs = lambda x, w, b, r: (F.conv1d(x, w, b, padding=1) + r).relu()  # noqa: E731
    if training:
        for got, want in zip(results(ours, tensors), results(torchs, tensors), strict=True):
            assert torch.equal(got, want)
    with torch.no_grad():
        assert torch.equal(ours(*tensors), torchs(*tensors))
        wide = x, weight, bias, residual[..., :1]  # a residual that torch has to spread
        assert torch.equal(ours(*wide), torchs(*wide))


@pytest.mark.parametrize("activation", ("relu", "silu", "leaky_relu(0.5)"))
def test_activation(activation, device):
    tensors = operands((2, 5, 9), (6, 5, 3), dtype=torch.float64, device=device)
    torchs = {"relu": F.relu, "silu": F.silu, "leaky_relu(0.5)": lambda x: F.leaky_relu(x, 0.5)}[activation]
    dy = integers((2, 6, 7), torch.float64, device, seed=3)
    for got, want in zip(
        results(conv1d, tensors, dy, activation=activation),
        results(lambda *t: torchs(F.conv1d(*t)), tensors, dy),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("function", (conv1d, causal_conv1d))
@pytest.mark.parametrize("channels", (2, 5))
def test_gradcheck_to_the_second_order(function, channels, fast_device):
    shapes = (1, channels, 5), (channels, channels, 3)
    tensors = [t.requires_grad_() for t in operands(*shapes, normal, torch.float64, fast_device)]
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize(
    ("options", "shape"),
    (
        ({"stride": (1, 1)}, (2, 3, 9)),
        ({"padding": (1, 1)}, (2, 3, 9)),
        ({"stride": 0}, (2, 3, 9)),
        ({"padding": -1}, (2, 3, 9)),
        ({"padding": "same", "stride": 2}, (2, 3, 9)),
        ({"groups": 2}, (2, 3, 9)),
        ({}, (2, 4, 9)),
        ({}, (2, 3, 2)),
        ({}, (1, 2, 3, 9)),
        ({}, (9,)),
    ),
    ids=str,
)
def test_refusals_are_torchs_own(options, shape, device):
    x, weight = torch.zeros(shape, device=device), torch.zeros(4, 3, 3, device=device)
    with pytest.raises(Exception) as torchs:  # noqa: PT011  whatever torch raises
        F.conv1d(x, weight, **options)
    with pytest.raises(torchs.type) as ours:
        conv1d(x, weight, **options)
    assert str(ours.value) == str(torchs.value)


def test_a_pack_follows_its_weight(device):
    x, weight, _ = operands((2, 5, 9), (6, 5, 3), device=device)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(conv1d(x, weight), F.conv1d(x, weight))
            (weight if x.is_cuda else weight.data).mul_(2)  # the latter past the version counter


def test_modules(device):
    module = tritonconv.nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular", activation="relu").to(device)
    plain = nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular").to(device)
    plain.load_state_dict(module.state_dict())
    x = normal((2, 3, 9), torch.float32, device)
    torch.testing.assert_close(module(x), plain(x).relu())
    assert "activation='relu'" in repr(module)


def test_patch(device):
    model = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 2, 3, stride=2)).to(device)
    x = normal((2, 3, 9), torch.float32, device)
    want = model(x)
    tritonconv.patch(model)
    sites = [(site.pattern, site.status) for site in tritonconv.report(model).sites]
    assert sites == [("conv1d+relu", "fused"), ("conv1d", "swapped")]
    torch.testing.assert_close(model(x), want)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
