"""conv2d against torch: exact sums, bounded errors, layouts, gradients of all orders."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import CONV_CASES, FLOATS, ConvCase, integers, normal
from tolerance import assert_as_good_as, assert_bounded

from tritonconv import engines, launch
from tritonconv.functional import conv2d
from tritonconv.geometry import ConvGeometry

DENSE = ConvCase((2, 5, 6, 7), (6, 3, 2), stride=(1, 2), padding=(1, 0))


def operands(case, make, dtype, device):
    return [make(shape, dtype, device, seed=i) for i, shape in enumerate((case.input, case.weight, case.weight[:1]))]


def results(function, tensors, case, dy=None, **options):
    """[y, dx, dw, db] of a convolution of x, weight and bias; `dy` defaults to integers."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = function(*tensors, **case.options, **options)
    dy = integers(y.shape, y.dtype, y.device, seed=3) if dy is None else dy.to(y)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy)]


# Every case in float32 and in one other dtype.
EXACT = [(case, FLOATS[0]) for case in CONV_CASES] + list(zip(CONV_CASES, itertools.cycle(FLOATS[1:]), strict=False))


@pytest.mark.parametrize(("case", "dtype"), EXACT, ids=str)
def test_integer_sums_are_exact(case, dtype, device):
    tensors = operands(case, integers, dtype, device)
    exact = results(F.conv2d, [t.double().cpu() for t in tensors], case)
    for name, got, want in zip(("y", "dx", "dw", "db"), results(conv2d, tensors, case), exact, strict=True):
        assert torch.equal(got.cpu(), want.to(dtype)), name


@pytest.mark.parametrize("padding", (((0, 1), (0, 1)), ((3, 0), (1, 2))), ids=str)
@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("groups", (1, 4))
def test_padding_for_each_side(groups, stride, padding, device):
    """Exactly as `F.pad` before it, which it is where torch runs the convolution, of integers."""

    def reference(x, weight, bias, padding, **options):
        (top, bottom), (left, right) = padding
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, **options)

    case = ConvCase((2, 4, 6, 7), (8, 3, 3), (stride, stride), padding, groups=groups)
    tensors = operands(case, integers, torch.float64, device)
    for got, want in zip(results(conv2d, tensors, case), results(reference, tensors, case), strict=True):
        assert torch.equal(got, want)
    whole = [t.detach().cpu().long() for t in tensors]  # which torch convolves on CPUs alone
    assert torch.equal(conv2d(*whole, **case.options), reference(*whole, **case.options))


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)  # float64 is the reference
@pytest.mark.parametrize("case", (DENSE, CONV_CASES[-1]), ids=str)
def test_errors_are_bounded_and_no_worse_than_torchs(case, dtype, device):
    tensors = operands(case, normal, dtype, device)
    wide = [t.double() for t in tensors]
    dy = normal(F.conv2d(*tensors, **case.options).shape, dtype, device, seed=3)
    exact = results(F.conv2d, wide, case, dy)
    magnitude = results(F.conv2d, [t.abs() for t in wide], case, dy.abs())
    g = case.geometry
    terms = g.Cg * g.taps + 1, g.Kg * g.taps, g.N * g.P * g.Q, g.N * g.P * g.Q
    for values in zip(
        results(conv2d, tensors, case, dy), results(F.conv2d, tensors, case, dy), exact, magnitude, terms, strict=True
    ):
        got, torchs, *bound = values
        assert_bounded(got, *bound)
        assert_as_good_as(got, torchs, bound[0])


def _sliced(x):
    return torch.cat((x, x), 3)[..., ::2][..., : x.shape[3]].copy_(x)


LAYOUTS = {
    "nchw": torch.Tensor.contiguous,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": _sliced,
    "sliced_channels_last": lambda x: _sliced(x.contiguous(memory_format=torch.channels_last)),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("shape", ((2, 5, 6, 7), (2, 1, 6, 7), (1, 5, 3, 2)), ids=str)
@pytest.mark.parametrize("w_layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_layouts_give_torchs_values_and_strides(shape, x_layout, w_layout, device):
    x = LAYOUTS[x_layout](integers(shape, torch.float32, device))
    weight = LAYOUTS[w_layout](integers((4, shape[1], 3, 2), torch.float32, device))
    got, want = conv2d(x, weight), F.conv2d(x, weight)
    assert torch.equal(got, want)
    assert got.stride() == want.stride()


@pytest.mark.parametrize("layout", ("expanded", "transposed", "channels_last"))
def test_any_layout_of_the_output_gradient(layout, device):
    x, weight, bias = operands(DENSE, integers, torch.float32, device)
    shape = conv2d(x, weight, bias, **DENSE.options).shape
    if layout == "expanded":
        dy = torch.tensor(2.0, device=device).expand(shape)
    else:
        dy = LAYOUTS[layout](integers(shape, torch.float32, device))
    for got, want in zip(
        results(conv2d, (x, weight, bias), DENSE, dy), results(F.conv2d, (x, weight, bias), DENSE, dy), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3)), ids=str)
def test_every_subset_of_requires_grad(needed, device):
    def make():
        return operands(DENSE, integers, torch.float32, device)

    def gradients(function):
        tensors = [t.requires_grad_(n) for t, n in zip(make(), needed, strict=True)]
        y = function(*tensors, **DENSE.options)
        assert y.requires_grad == any(needed)
        if any(needed):
            y.sum().backward()
        return [t.grad for t in tensors]

    for got, want in zip(gradients(conv2d), gradients(F.conv2d), strict=True):
        assert (got is None) == (want is None)
        assert got is None or torch.equal(got, want)


@pytest.fixture
def in_tf32(device):
    """As on sm_90, on every engine."""
    torch.backends.cudnn.allow_tf32 = True
    with engines._pin(replace(engines.engine_for(device), target=lambda device: "sm_90")):
        yield


@pytest.mark.parametrize("keep", (True, False))
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_filters_turned_for_tf32_are_exact(case, keep, device, in_tf32):
    """Small integers are."""
    x, weight, _ = operands(case, integers, torch.float32, device)
    y = F.conv2d(x, weight, **case.options)
    dy = integers(y.shape, y.dtype, device, seed=3)
    dx = torch.nn.grad.conv2d_input(x.shape, weight, dy, **case.options)
    assert torch.equal(launch.conv.fprop(x, weight, None, case.geometry, keep_pack=keep), y)
    assert torch.equal(launch.conv.dgrad(dy, weight, None, case.geometry, keep_pack=keep), dx)


def test_operands_are_rounded_to_tf32(device, in_tf32):
    """To nearest, not cut off: then all sums would be too small."""
    case = ConvCase((2, 16, 9, 9), (24, 3, 3), padding=(1, 1))
    x, weight, dy = (t.abs() for t in operands(case, normal, torch.float32, device))
    x[0, 0, 0, 0], dy = 1 + 2**-11, normal((2, 24, 9, 9), torch.float32, device).abs()  # half of what TF32 resolves
    near = [_to_tf32(t) for t in (x, weight, dy)]
    assert near[0][0, 0, 0, 0] == 1 + 2**-10
    for run, operand in (
        (lambda x, w, dy: launch.conv.fprop(x, w, None, case.geometry), 0),
        (lambda x, w, dy: launch.conv.dgrad(dy, w, None, case.geometry), 2),
        (lambda x, w, dy: launch.conv.wgrad(dy, x, case.geometry), 2),
    ):
        assert not torch.equal(near[operand], (x, weight, dy)[operand])
        assert torch.equal(run(x, weight, dy), run(*near))


def _to_tf32(x):
    """Of what is not negative: 11 bits in all, halves up."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp(torch.floor(mantissa * 2**11 + 0.5), exponent - 11).float()


def test_gradient_of_a_weight_has_its_strides(device):
    for layout in ("nchw", "channels_last"):
        weight = LAYOUTS[layout](integers((4, 5, 3, 2), torch.float32, device)).requires_grad_()
        (dw,) = torch.autograd.grad(conv2d(integers((2, 5, 6, 7), torch.float32, device), weight).sum(), weight)
        assert dw.stride() == weight.stride()


def test_bias_of_any_stride(device):
    x, weight, bias = operands(DENSE, integers, torch.float32, device)
    spread = torch.stack((bias, bias + 1), 1)[:, 0]
    assert torch.equal(conv2d(x, weight, spread, **DENSE.options), F.conv2d(x, weight, bias, **DENSE.options))


@pytest.mark.parametrize("padding", ("same", "valid", 1, [2, 1]), ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_arguments_and_unbatched_input(padding, device):
    x, weight = integers((3, 6, 7), torch.float32, device), integers((4, 3, 4, 3), torch.float32, device)
    for input in (x, x[None]):
        got, want = (f(input, weight, padding=padding, dilation=[1, 2]) for f in (conv2d, F.conv2d))
        assert torch.equal(got, want)
        assert got.stride() == want.stride()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_relu_passes_nan_and_its_gradient(dtype, device):
    x = torch.tensor([float("nan"), -1.0, 0.0, 2.0, float("inf"), -float("inf")], device=device, dtype=dtype)
    x = x.reshape(1, 1, 2, 3).requires_grad_()
    weight = torch.ones(1, 1, 1, 1, device=device, dtype=dtype)
    y, want = conv2d(x, weight, activation="relu"), torch.relu(F.conv2d(x, weight))
    assert torch.equal(y.nan_to_num(7), want.nan_to_num(7))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(want.sum(), x)[0])


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_tanh_is_within_three_units_in_the_last_place(dtype, device):
    """Of numbers large and small, and of zero, infinity and NaN."""
    special = torch.tensor([0.0, float("inf"), float("nan"), 0.625, 2**-24, 88.0], dtype=dtype)
    x = torch.cat([special, torch.linspace(0, 12, 1000, dtype=dtype), torch.logspace(-30, 1, 994, dtype=dtype)])
    x = torch.cat([x, -x]).reshape(1, 1, 40, 100)
    one = torch.ones(1, 1, 1, 1, device=device, dtype=dtype)
    got = conv2d(x.to(device), one, activation="tanh").cpu()
    want = x.double().tanh()
    unit = want.to(dtype).abs().nextafter(torch.tensor(2.0, dtype=dtype)).double() - want.to(dtype).abs().double()
    assert ((got.double() - want).abs() <= 3 * unit)[~x.isnan()].all()
    assert got[x.isnan()].isnan().all()
    assert (got.nan_to_num().abs() <= 1).all()
    assert torch.equal(got.signbit()[x.abs() > 0], x.signbit()[x.abs() > 0])


def test_padding_keeps_infinities_out(device):
    """A padded pixel counts as absent: its product with an infinite gradient is not NaN. (With few channels it is.)"""
    x = torch.ones(1, 5, 3, 3, device=device)
    weight = torch.ones(1, 5, 3, 3, device=device, requires_grad=True)
    y = conv2d(x, weight, padding=1)
    dy = torch.full_like(y, float("inf"))
    (dw,) = torch.autograd.grad(y, weight, dy)
    assert dw.isposinf().all()


@pytest.mark.parametrize("channel", (0, 2))
def test_a_channels_infinity_stays_in_its_products(channel, device):
    """Channels are padded to a block with zeros; what lies beyond the block in memory must not meet them."""
    x = torch.ones(1, 3, 2, 2, device=device)
    x[:, channel, 1, 1] = float("inf")
    y = conv2d(x, torch.ones(2, 3, 1, 1, device=device))
    assert y.isinf().sum() == 2
    assert not y.isnan().any()


@pytest.mark.parametrize(
    ("case", "activation"),
    (
        (ConvCase((1, 2, 4, 3), (2, 2, 2), stride=(2, 1), padding=(1, 1)), "relu"),
        (ConvCase((1, 2, 4, 3), (2, 2, 2), dilation=(2, 1), groups=2), None),
    ),
    ids=str,
)
def test_gradcheck_to_the_second_order(case, activation, fast_device):
    tensors = [t.requires_grad_() for t in operands(case, normal, torch.float64, fast_device)]
    y = conv2d(*tensors, **case.options)
    assert y.abs().min() > 1e-3  # apart from the kink of ReLU

    def function(x, weight, bias):
        return conv2d(x, weight, bias, **case.options, activation=activation)

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_same_bits_twice(device):
    tensors = operands(DENSE, normal, torch.float32, device)
    for a, b in zip(results(conv2d, tensors, DENSE), results(conv2d, tensors, DENSE), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_autocast_computes_in_its_dtype(dtype, device):
    x, weight, bias = operands(DENSE, integers, dtype, device)
    weight.requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        y, want = (f(x, weight, bias, **DENSE.options) for f in (conv2d, F.conv2d))
    assert y.dtype is want.dtype
    assert torch.equal(y, want)
    (dw,) = torch.autograd.grad(y.sum(), weight)
    assert dw.dtype is dtype


def test_no_grad_and_inference_mode(device):
    tensors = [t.requires_grad_() for t in operands(DENSE, integers, torch.float32, device)]
    want = F.conv2d(*tensors, **DENSE.options)
    with torch.no_grad():
        y = conv2d(*tensors, **DENSE.options)
    assert not y.requires_grad
    assert torch.equal(y, want)
    with torch.inference_mode():
        tensors = [t.clone() for t in tensors]  # have no version counter
        assert torch.equal(conv2d(*tensors, **DENSE.options), want)


@pytest.mark.parametrize("padding", (((1, 2), (3, 0)), ((0, 0), (0, 1)), ((-1, 1), (2, -2))), ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_padding_in_memory_is_torchs(padding, dtype, device):
    x = normal((2, 3, 4, 700), dtype, device).contiguous(memory_format=torch.channels_last)
    geometry = ConvGeometry(2, 3, 4, 700, 1, 1, 1, padding=padding)
    (top, bottom), (left, right) = padding
    assert torch.equal(launch.padding.padded(x, geometry), F.pad(x, (left, right, top, bottom)))
