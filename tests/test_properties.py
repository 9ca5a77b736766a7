"""Properties of convolution and max-pooling over drawn problems. The input size follows from the output size and the
kernel, so that every draw is a problem."""

import torch
from cases import ConvCase, fitting, integers, normal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tritonconv import launch
from tritonconv.functional import conv2d, max_pool2d

few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def axes(draw):
    """(size, window, stride, padding, dilation) of one axis."""
    output, window, stride, dilation = draw(st.tuples(*(st.integers(1, n) for n in (4, 3, 3, 3))))
    # At least one pixel of the input has to be left.
    padding = draw(st.integers(0, min(2, ((output - 1) * stride + dilation * (window - 1)) // 2)))
    size = fitting(output, window, stride, padding, dilation, draw(st.integers(0, stride - 1)))
    return size, window, stride, padding, dilation


@st.composite
def convolutions(draw, batch=(1, 2), groups=(1, 3)):
    """Convolutions with batch and groups in these ranges."""
    (H, *vertical), (W, *horizontal) = draw(axes()), draw(axes())
    groups, per_group, multiplier = (draw(st.integers(*limits)) for limits in (groups, (1, 5), (1, 5)))
    (R, S), stride, padding, dilation = zip(vertical, horizontal, strict=True)
    input = draw(st.integers(*batch)), groups * per_group, H, W
    return ConvCase(input, (groups * multiplier, R, S), stride, padding, dilation, groups)


def operands(case, device):
    return integers(case.input, torch.float32, device), integers(case.weight, torch.float32, device, seed=1)


@few
@given(case=convolutions(batch=(3, 3)))
def test_a_batch_is_its_images(case, device):
    x, weight = operands(case, device)
    parts = [conv2d(image, weight, **case.options) for image in x.split((1, 2))]
    assert torch.equal(conv2d(x, weight, **case.options), torch.cat(parts))


@few
@given(case=convolutions(groups=(2, 3)))
def test_groups_are_separate_convolutions(case, device):
    x, weight = operands(case, device)
    options = case.options | {"groups": 1}
    parts = [conv2d(a, b, **options) for a, b in zip(x.chunk(case.groups, 1), weight.chunk(case.groups), strict=True)]
    assert torch.equal(conv2d(x, weight, **case.options), torch.cat(parts, 1))


@few
@given(case=convolutions(), shift=st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_shifting_the_input_by_strides_shifts_the_output(case, shift, device):
    x, weight = operands(case, device)
    options = case.options | {"padding": 0}
    rows, columns = shift
    # Room for the shift on both sides, and the padding made explicit.
    (top, left), (sh, sw) = case.padding, case.stride
    x = torch.nn.functional.pad(x, (left, left + 2 * sw, top, top + 2 * sh))
    shifted = torch.roll(x, (rows * sh, columns * sw), (2, 3))
    y, moved = conv2d(x, weight, **options), conv2d(shifted, weight, **options)
    P, Q = y.shape[2] - rows, y.shape[3] - columns
    inner = moved[:, :, rows:, columns:], y[:, :, :P, :Q]
    # Windows that begin before the shift's edge see what roll brought around.
    assert torch.equal(*inner)


@few
@given(case=convolutions())
def test_gradients_are_adjoints(case, device):
    """⟨conv(x, w), dy⟩ = ⟨x, dgrad(dy, w)⟩ = ⟨w, wgrad(dy, x)⟩, in integers."""
    x, weight = operands(case, device)
    y = conv2d(x, weight, **case.options)
    dy = integers(y.shape, torch.float32, device, seed=2)
    geometry = case.geometry
    product = (y * dy).sum()
    assert (x * launch.conv.dgrad(dy, weight, None, geometry)).sum() == product
    assert (weight * launch.conv.wgrad(dy, x, geometry)).sum() == product


@few
@given(case=convolutions(groups=(1, 1)))
def test_a_pointwise_convolution_is_a_matrix_product(case, device):
    x, weight = operands(case, device)
    weight = weight[:, :, :1, :1]
    got = conv2d(x, weight)
    assert torch.equal(got, torch.einsum("nchw,kc->nkhw", x, weight[:, :, 0, 0]))


@few
@given(case=convolutions())
def test_fused_activation_is_the_activation(case, device):
    x, weight = operands(case, device)
    bias = integers(weight.shape[:1], torch.float32, device, seed=2)
    fused = conv2d(x, weight, bias, **case.options, activation="relu")
    assert torch.equal(fused, torch.relu(conv2d(x, weight, bias, **case.options)))


@few
@given(vertical=axes(), horizontal=axes(), ceil_mode=st.booleans())
def test_a_maximum_is_where_its_index_says(vertical, horizontal, ceil_mode, device):
    (H, *vertical), (W, *horizontal) = vertical, horizontal
    window, stride, padding, dilation = zip(vertical, horizontal, strict=True)
    padding = tuple(min(p, ((w - 1) * d + 1) // 2) for p, w, d in zip(padding, window, dilation, strict=True))
    x = integers((2, 3, H + 4, W + 4), torch.float32, device)
    y, indices = max_pool2d(x, window, stride, padding, dilation, ceil_mode, return_indices=True)
    assert torch.equal(x.flatten(2).gather(2, indices.flatten(2)), y.flatten(2))


def test_memory_format_changes_no_bit(device):
    x, weight = normal((2, 5, 6, 7), torch.float32, device), normal((4, 5, 3, 3), torch.float32, device)
    assert torch.equal(conv2d(x.contiguous(memory_format=torch.channels_last), weight), conv2d(x, weight))
