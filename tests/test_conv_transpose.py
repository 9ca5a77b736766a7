"""conv_transpose2d against torch: exact sums, bounded errors, layouts, gradients of all orders, refusals."""

import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, integers, normal
from hypothesis import given
from test_conv import LAYOUTS
from test_fallback import assert_alike, outcome
from test_properties import convolutions, few
from test_properties import operands as drawn
from tolerance import assert_as_good_as, assert_bounded

from tritonconv import launch
from tritonconv.functional import conv_transpose2d
from tritonconv.geometry import input_size


@dataclass(frozen=True)
class Case:
    """Arguments of conv_transpose2d: input [N, K, P, Q], kernel (C, R, S), weight [K, C/groups, R, S]."""

    input: tuple[int, int, int, int]
    kernel: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def options(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("input", "kernel")}

    def operands(self, make, dtype, device):
        """[input, weight, bias]."""
        C, R, S = self.kernel
        shapes = self.input, (self.input[1], C // self.groups, R, S), (C,)
        return [make(shape, dtype, device, seed=i) for i, shape in enumerate(shapes)]


# DCGAN's and U-Net's layers; odd channel counts; each parameter different per axis; output pixels that no tap reaches,
# by stride, dilation and output padding; dilations with and without a factor in common with the stride; depthwise.
CASES = (
    Case((2, 5, 3, 4), (3, 4, 4), stride=(2, 2), padding=(1, 1)),
    Case((2, 4, 3, 2), (6, 2, 2), stride=(2, 2)),
    Case((1, 17, 4, 3), (3, 3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1)),
    Case((1, 7, 1, 1), (9, 4, 4)),
    Case((2, 3, 4, 5), (5, 1, 1)),
    Case((1, 3, 4, 3), (2, 3, 2), stride=(2, 3), padding=(1, 0), output_padding=(0, 2)),
    Case((1, 2, 3, 2), (3, 1, 2), stride=(3, 4), padding=(0, 2), output_padding=(2, 3)),
    Case((1, 3, 5, 3), (2, 3, 3), stride=(2, 1), padding=(2, 3), dilation=(2, 3)),
    Case((1, 2, 3, 3), (3, 3, 4), stride=(4, 3), padding=(3, 2), output_padding=(1, 2), dilation=(2, 2)),
    Case((2, 6, 3, 4), (4, 3, 3), stride=(2, 1), padding=(1, 0), groups=2),
    Case((1, 5, 3, 3), (5, 3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 0), groups=5),
    Case((1, 3, 4, 4), (6, 4, 4), stride=(2, 2), padding=(1, 1), groups=3),
    Case((1, 33, 3, 3), (40, 2, 2), stride=(2, 2)),
)
DENSE = Case((2, 5, 3, 4), (6, 3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2))


def results(function, tensors, case, dy=None, **options):
    """[y, dx, dw, db] of a transposed convolution of x, weight and bias; `dy` defaults to integers."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = function(*tensors, **case.options, **options)
    dy = integers(y.shape, y.dtype, y.device, seed=3) if dy is None else dy.to(y)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy)]


# Every case in float32 and in one other dtype.
EXACT = [(case, FLOATS[0]) for case in CASES] + list(zip(CASES, itertools.cycle(FLOATS[1:]), strict=False))


@pytest.mark.parametrize(("case", "dtype"), EXACT)
def test_integer_sums_are_exact(case, dtype, device):
    tensors = case.operands(integers, dtype, device)
    exact = results(F.conv_transpose2d, [t.double().cpu() for t in tensors], case)
    for name, got, want in zip(("y", "dx", "dw", "db"), results(conv_transpose2d, tensors, case), exact, strict=True):
        assert torch.equal(got.cpu(), want.to(dtype)), name


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)  # float64 is the reference
@pytest.mark.parametrize("case", (DENSE, CASES[-1]))
def test_errors_are_bounded_and_no_worse_than_torchs(case, dtype, device):
    tensors = case.operands(normal, dtype, device)
    wide = [t.double() for t in tensors]
    dy = normal(F.conv_transpose2d(*tensors, **case.options).shape, dtype, device, seed=3)
    exact = results(F.conv_transpose2d, wide, case, dy)
    magnitude = results(F.conv_transpose2d, [t.abs() for t in wide], case, dy.abs())
    (N, K, P, Q), (C, R, S) = case.input, case.kernel
    terms = K * R * S + 1, C * R * S, N * P * Q, dy.numel() // C
    for values in zip(
        results(conv_transpose2d, tensors, case, dy),
        results(F.conv_transpose2d, tensors, case, dy),
        exact,
        magnitude,
        terms,
        strict=True,
    ):
        got, torchs, *bound = values
        assert_bounded(got, *bound)
        assert_as_good_as(got, torchs, bound[0])


@pytest.mark.parametrize("activation", (None, "relu"))
@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("N", (1, 3))
def test_single_pixels_become_their_weighted_windows(N, bias, activation, device):
    x, weight, b = Case((N, 7, 1, 1), (9, 4, 3)).operands(integers, torch.float32, device)
    b = b if bias else None
    got = conv_transpose2d(x, weight, b, activation=activation)
    want = F.conv_transpose2d(x, weight, b)
    assert torch.equal(got, F.relu(want) if activation else want)
    assert got.stride() == want.stride()


@pytest.mark.parametrize("shape", ((2, 5, 3, 4), (2, 1, 3, 4), (1, 5, 3, 2)), ids=str)
@pytest.mark.parametrize("w_layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_layouts_give_torchs_values_and_strides(shape, x_layout, w_layout, device):
    x = LAYOUTS[x_layout](integers(shape, torch.float32, device))
    weight = LAYOUTS[w_layout](integers((shape[1], 4, 3, 2), torch.float32, device)).requires_grad_()
    got, want = conv_transpose2d(x, weight, stride=2), F.conv_transpose2d(x, weight, stride=2)
    assert torch.equal(got, want)
    assert got.stride() == want.stride()
    (dw,) = torch.autograd.grad(got.sum(), weight)
    assert dw.stride() == weight.stride()


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3)), ids=str)
def test_every_subset_of_requires_grad(needed, device):
    def gradients(function):
        tensors = DENSE.operands(integers, torch.float32, device)
        tensors = [t.requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        y = function(*tensors, **DENSE.options)
        assert y.requires_grad == any(needed)
        if any(needed):
            y.sum().backward()
        return [t.grad for t in tensors]

    for got, want in zip(gradients(conv_transpose2d), gradients(F.conv_transpose2d), strict=True):
        assert (got is None) == (want is None)
        assert got is None or torch.equal(got, want)


@pytest.mark.parametrize(("stride", "output_padding"), ((2, 1), ([3, 2], [2, 0]), ((2,), (1,)), (2, (0, 1))), ids=str)
def test_forms_of_arguments_and_unbatched_input(stride, output_padding, device):
    x, weight, bias = DENSE.operands(integers, torch.float32, device)
    for input in (x, x[0]):
        arguments = input, weight, torch.stack((bias, bias), 1)[:, 0], stride, 1, output_padding, 1, [1, 2]
        got, want = (f(*arguments) for f in (conv_transpose2d, F.conv_transpose2d))
        assert torch.equal(got, want)
        assert got.stride() == want.stride()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_relu_passes_nan_and_its_gradient(dtype, device):
    x = torch.tensor([float("nan"), -1.0, 0.0, 2.0, float("inf"), -float("inf")], device=device, dtype=dtype)
    x = x.reshape(1, 1, 2, 3).requires_grad_()
    weight = torch.ones(1, 2, 1, 1, device=device, dtype=dtype)
    bias = torch.tensor([1.0, -1.0], device=device, dtype=dtype)  # in the pixels that no tap reaches, too
    y = conv_transpose2d(x, weight, bias, 2, activation="relu")
    want = torch.relu(F.conv_transpose2d(x, weight, bias, 2))
    assert torch.equal(y.nan_to_num(7), want.nan_to_num(7))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(want.sum(), x)[0])


@pytest.mark.parametrize("activation", ("leaky_relu(0.2)", "tanh", "silu"))
def test_other_activations_and_their_gradients(activation, device):
    """The last one's gradient takes its input: then it is torch's own."""
    tensors = DENSE.operands(normal, torch.float64, device)
    torchs = getattr(F, activation.partition("(")[0])
    options = {"negative_slope": 0.2} if "(" in activation else {}

    def composed(*tensors, **arguments):
        return torchs(F.conv_transpose2d(*tensors, **arguments), **options)

    want = results(composed, tensors, DENSE)
    torch.testing.assert_close(results(conv_transpose2d, tensors, DENSE, activation=activation), want)
    torch.testing.assert_close(conv_transpose2d(*tensors, **DENSE.options, activation=activation), want[0])


def test_an_infinity_stays_in_its_windows(device):
    x = torch.ones(1, 3, 3, 3, device=device)
    x[:, 2, 1, 1] = float("inf")
    y = conv_transpose2d(x, torch.ones(3, 2, 2, 2, device=device), stride=2)
    assert y.isinf().sum() == 2 * 2 * 2
    assert not y.isnan().any()


@pytest.mark.parametrize(
    ("case", "activation"),
    (
        (Case((1, 2, 2, 3), (2, 3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 0)), "relu"),
        (Case((1, 2, 2, 2), (2, 2, 2), dilation=(2, 1), groups=2), None),
    ),
)
def test_gradcheck_to_the_second_order(case, activation, fast_device):
    tensors = [t.requires_grad_() for t in case.operands(normal, torch.float64, fast_device)]
    assert conv_transpose2d(*tensors, **case.options).abs().min() > 1e-3  # apart from the kink of ReLU

    def function(x, weight, bias):
        return conv_transpose2d(x, weight, bias, **case.options, activation=activation)

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_autocast_computes_in_its_dtype(dtype, device):
    x, weight, bias = DENSE.operands(integers, dtype, device)
    weight.requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        y, want = (f(x, weight, bias, **DENSE.options) for f in (conv_transpose2d, F.conv_transpose2d))
    assert y.dtype is want.dtype
    assert torch.equal(y, want)
    (dw,) = torch.autograd.grad(y.sum(), weight)
    assert dw.dtype is dtype


def test_inference_mode(device):
    with torch.inference_mode():
        tensors = DENSE.operands(integers, torch.float32, device)  # have no version counter
        want = F.conv_transpose2d(*tensors, **DENSE.options)
        assert torch.equal(conv_transpose2d(*tensors, **DENSE.options), want)


@few
@given(case=convolutions())
def test_it_is_the_adjoint_of_convolution(case, device):
    """⟨conv(x, w), dy⟩ = ⟨x, conv_transpose(dy, w)⟩, in integers."""
    x, weight = drawn(case, device)
    y = F.conv2d(x, weight, **case.options)
    dy = integers(y.shape, torch.float32, device, seed=2)
    axes = y.shape[2:], weight.shape[2:], case.stride, case.padding, case.dilation, (0, 0)
    output_padding = [size - least for size, least in zip(x.shape[2:], map(input_size, *axes), strict=True)]
    got = conv_transpose2d(dy, weight, output_padding=output_padding, **case.options)
    assert (x * got).sum() == (y * dy).sum()


X, WEIGHT, BIAS = torch.ones(1, 4, 5, 5), torch.ones(4, 3, 3, 3), torch.ones(3)

WRONG = {
    "output padding of a stride": ((X, WEIGHT), {"stride": 2, "output_padding": (0, 2)}),
    "output padding without a stride": ((X, WEIGHT), {"output_padding": 1}),
    "negative output padding": ((X, WEIGHT), {"stride": 2, "output_padding": -1}),
    "negative padding": ((X, WEIGHT), {"padding": (0, -1)}),
    "padding as large as the output": ((X, WEIGHT), {"padding": (4, 0)}),
    "stride 0": ((X, WEIGHT), {"stride": (1, 0)}),
    "dilation 0": ((X, WEIGHT), {"dilation": 0}),
    "three output paddings": ((X, WEIGHT), {"output_padding": (0, 0, 0)}),
    "channels": ((X[:, :3], WEIGHT), {}),
    "indivisible groups": ((X, WEIGHT), {"groups": 3}),
    "groups 0": ((X, WEIGHT), {"groups": 0}),
    "bias size": ((X, WEIGHT, BIAS[:2]), {}),
    "bias size in groups": ((X, WEIGHT, BIAS), {"groups": 2}),
    "dtypes": ((X, WEIGHT.double()), {}),
    "input of 2 dimensions": ((X[0, 0], WEIGHT), {}),
    "input of 5 dimensions": ((X[None], WEIGHT), {}),
    "weight of 3 dimensions": ((X, WEIGHT[0]), {}),
    "empty image": ((X[:, :, :0], WEIGHT), {}),
    "no output channels": ((X, WEIGHT[:, :0]), {}),
}


@pytest.mark.parametrize(("args", "options"), WRONG.values(), ids=WRONG)
def test_wrong_calls_raise_torchs_errors(args, options, monkeypatch):
    monkeypatch.setattr(launch.conv, "dgrad", None)
    want = outcome(F.conv_transpose2d, *args, **options)
    assert isinstance(want, tuple), "torch accepts this"
    assert_alike(outcome(conv_transpose2d, *args, **options), want)


TORCHS = {
    "empty batch": ((X[:0], WEIGHT), {}),
    "complex": ((X + 1j, WEIGHT + 1j), {}),
    "output padding below the dilation only": ((X, WEIGHT), {"output_padding": 1, "dilation": 2}),
    "bias of another dtype": ((X, WEIGHT, BIAS.half()), {}),
    "stride of a tensor": ((X, WEIGHT, BIAS, torch.tensor(2)), {}),
}


@pytest.mark.parametrize(("args", "options"), TORCHS.values(), ids=TORCHS)
def test_calls_that_only_torch_takes(args, options, monkeypatch):
    monkeypatch.setattr(launch.conv, "dgrad", None)
    want = F.conv_transpose2d(*args, **options)
    assert_alike(conv_transpose2d(*args, **options), want)
    if not want.is_complex():
        assert_alike(conv_transpose2d(*args, **options, activation="relu"), want.relu())


def test_arguments_of_wrong_types():
    """Here torch's text repeats how the arguments were passed, positionally or by name."""
    for options, text in (
        ({"padding": "same"}, r"argument 'padding'.* must be tuple of ints, not str"),
        ({"stride": 2.0}, "argument 'stride'"),
    ):
        with pytest.raises(TypeError, match=rf"^conv_transpose2d\(\): {text}"):
            conv_transpose2d(X, WEIGHT, **options)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation must be None, slopes or one of relu, .*; got 'step'"):
        conv_transpose2d(X, WEIGHT, activation="step")
