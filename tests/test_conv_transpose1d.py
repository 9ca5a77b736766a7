"""conv_transpose1d against torch: exact sums, strides, activations, batch norm, gradients of all orders, refusals."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, integers, normal
from test_conv1d import LAYOUTS, operands, results
from test_fallback import assert_alike, outcome

from tritonconv import launch
from tritonconv.functional import conv_transpose1d, conv_transpose1d_batch_norm

# input [N, K, Q], weight [K, C/groups, S], channels C, options
CASES = (
    ((2, 5, 6), (5, 3, 4), 3, {"stride": 2, "padding": 1}),
    ((1, 4, 5), (4, 3, 5), 6, {"stride": (4,), "padding": [2], "output_padding": 3, "groups": 2}),
    ((2, 3, 4), (3, 1, 3), 3, {"stride": 3, "dilation": 2, "groups": 3}),
    # At stride 1, by the kernels that leave the memory format as it is.
    ((2, 6, 20), (6, 7, 3), 7, {"padding": 2, "dilation": 3}),
    ((2, 10, 9), (10, 6, 2), 12, {"groups": 2}),
    ((1, 40, 70), (40, 33, 1), 33, {}),
)


def tensors_of(case, make=integers, dtype=torch.float32, device="cpu"):
    input, weight, C, _ = case
    return operands(input, weight, make, dtype, device)[:2] + [make((C,), dtype, device, seed=2)]


EXACT = [(case, FLOATS[0]) for case in CASES] + list(zip(CASES, itertools.cycle(FLOATS[1:]), strict=False))


@pytest.mark.parametrize(("case", "dtype"), EXACT, ids=str)
def test_integer_sums_are_exact(case, dtype, device):
    tensors, options = tensors_of(case, dtype=dtype, device=device), case[-1]
    exact = results(F.conv_transpose1d, [t.double().cpu() for t in tensors], **options)
    ours = results(conv_transpose1d, tensors, **options)
    for name, got, want in zip(("y", "dx", "dw", "db"), ours, exact, strict=True):
        assert torch.equal(got.cpu(), want.to(dtype)), name
    with torch.no_grad():
        got = conv_transpose1d(*tensors, **options, activation="relu")
        assert torch.equal(got.cpu(), exact[0].to(dtype).relu())


@pytest.mark.parametrize(("x_layout", "w_layout"), list(itertools.product(LAYOUTS, ("ncw", "nwc"))))
@pytest.mark.parametrize(("shape", "stride"), (((2, 6, 9), 1), ((2, 6, 9), 2), ((1, 1, 4), 1)), ids=str)
def test_layouts_give_torchs_values_and_strides(shape, stride, x_layout, w_layout, device):
    x = LAYOUTS[x_layout](integers(shape, torch.float32, device))
    weight = LAYOUTS[w_layout](integers((shape[1], 5, 2), torch.float32, device)).requires_grad_()
    for input in (x, x[0]):
        got, want = (f(input, weight, stride=stride) for f in (conv_transpose1d, F.conv_transpose1d))
        assert torch.equal(got, want)
        assert got.stride() == want.stride()
    (dw,) = torch.autograd.grad(got.sum(), weight)
    assert dw.stride() == weight.stride()


@pytest.mark.parametrize("activation", ("leaky_relu(0.2)", "silu", "slopes"))
@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("case", (CASES[0], CASES[3]), ids=str)
def test_batch_norm_and_activation(case, training, activation, device):
    """Of which slopes are a PReLU's, and silu's gradient takes its input."""
    C, options = case[2:]
    given = tensors_of(case, normal, torch.float64, device)
    given += [normal((C,), torch.float64, device, seed=seed) for seed in (4, 5, 6)]  # gamma, beta, slopes

    def ours(x, weight, bias, gamma, beta, slopes):
        text = slopes if activation == "slopes" else activation
        running = mean.clone(), var.clone()
        y = conv_transpose1d_batch_norm(
            x, weight, bias, *running, gamma, beta, training, 0.2, 1e-3, **options, activation=text
        )
        return y, running

    def torchs(x, weight, bias, gamma, beta, slopes):
        running = mean.clone(), var.clone()
        y = F.conv_transpose1d(x, weight, bias, **options)
        y = F.batch_norm(y, *running, gamma, beta, training, 0.2, 1e-3)
        if activation == "slopes":
            return F.prelu(y, slopes), running
        return F.silu(y) if activation == "silu" else F.leaky_relu(y, 0.2), running

    mean, var = normal((C,), torch.float64, device, seed=7), normal((C,), torch.float64, device, seed=8).square() + 0.5
    given = [t.requires_grad_() for t in given[: None if activation == "slopes" else -1]]
    slopes = () if activation == "slopes" else (None,)
    found = []
    for function in (ours, torchs):
        y, running = function(*given, *slopes)
        found.append([y, *running, *torch.autograd.grad(y, given, normal(y.shape, y.dtype, device, seed=3))])
    torch.testing.assert_close(*found)
    with torch.no_grad():
        torch.testing.assert_close(ours(*given, *slopes)[0], found[1][0])


@pytest.mark.parametrize("stride", (1, 2))
def test_gradcheck_to_the_second_order(stride, device):
    tensors = [t.requires_grad_() for t in operands((1, 5, 3), (5, 5, 2), normal, torch.float64, device)]

    def function(x, weight, bias):
        return conv_transpose1d(x, weight, bias, stride, activation="tanh")

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


X, WEIGHT = torch.ones(1, 4, 5), torch.ones(4, 3, 3)
WRONG = {
    "output padding without a stride": ((X, WEIGHT), {"output_padding": 1}),
    "padding as large as the output": ((X, WEIGHT), {"padding": 4}),
    "two strides": ((X, WEIGHT), {"stride": (1, 2)}),
    "channels": ((X[:, :3], WEIGHT), {}),
    "weight of 4 dimensions": ((X, WEIGHT[..., None]), {}),
    "dtypes": ((X, WEIGHT.double()), {}),
    "empty row": ((X[..., :0], WEIGHT), {}),
}


@pytest.mark.parametrize(("args", "options"), WRONG.values(), ids=WRONG)
def test_wrong_calls_raise_torchs_errors(args, options, monkeypatch):
    monkeypatch.setattr(launch.conv, "dgrad", None)
    want = outcome(F.conv_transpose1d, *args, **options)
    assert isinstance(want, tuple), "torch accepts this"
    assert_alike(outcome(conv_transpose1d, *args, **options), want)


def test_an_empty_batch_is_torchs(monkeypatch):
    monkeypatch.setattr(launch.conv, "dgrad", None)
    assert_alike(conv_transpose1d(X[:0], WEIGHT, activation="relu"), F.conv_transpose1d(X[:0], WEIGHT).relu())
