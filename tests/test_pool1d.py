"""1-D poolings against torch: exact values, indices and gradients, strides, refusals, modules."""

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, integers, normal

from tritonconv import functional
from tritonconv import nn as ours

# name, arguments after the input
CASES = (
    ("max_pool1d", (3,)),
    ("max_pool1d", ((3,), (2,), (1,), (2,), True, True)),
    ("avg_pool1d", (2,)),
    ("avg_pool1d", (4, 3, 2, True, False)),
    ("lp_pool1d", (2, 2)),
    ("adaptive_max_pool1d", (3, True)),
    ("adaptive_avg_pool1d", ((4,),)),
    ("adaptive_avg_pool1d", (1,)),
)


def results(module, name, arguments, x):
    x = x.detach().requires_grad_()
    y = getattr(module, name)(x, *arguments)
    values, *indices = y if isinstance(y, tuple) else (y,)
    (dx,) = torch.autograd.grad(values, x, integers(values.shape, x.dtype, x.device, seed=1))
    return [values.detach(), *indices, dx]


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("shape", ((2, 9, 12), (3, 8)), ids=str)
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_integers_and_their_gradients(name, arguments, shape, dtype, device):
    """Multiples of 12: all means are exact, and so is a norm's square."""
    x = (integers(shape, dtype, device).abs() + 1) * 12
    got, want = (results(module, name, arguments, x) for module in (functional, F))
    assert all(mine.stride() == torchs.stride() for mine, torchs in zip(got[:-1], want[:-1], strict=True))
    for mine, torchs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_any_strides_give_torchs(name, arguments, device):
    x = normal((2, 12, 9), torch.float64, device).transpose(1, 2)
    # On the CPU: on GPUs torch 2.11 averages such memory wrongly.
    for mine, torchs in zip(results(functional, name, arguments, x), results(F, name, arguments, x.cpu()), strict=True):
        torch.testing.assert_close(mine.cpu(), torchs)


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    (
        ("max_pool1d", ((2, 2),), (2, 3, 9)),
        ("max_pool1d", (3, 1, 2), (2, 3, 9)),
        ("max_pool1d", (12,), (2, 3, 9)),
        ("avg_pool1d", (2, 0), (2, 3, 9)),
        ("avg_pool1d", (2,), (1, 2, 3, 9)),
        ("adaptive_avg_pool1d", ((2, 3),), (2, 3, 9)),
        ("adaptive_max_pool1d", (-1,), (2, 3, 9)),
        ("lp_pool1d", (2, (2,)), (2, 3, 9)),
    ),
    ids=str,
)
def test_refusals_are_torchs_own(name, arguments, shape, device):
    x = torch.zeros(shape, device=device)
    with pytest.raises(Exception) as torchs:  # noqa: PT011  whatever torch raises
        getattr(F, name)(x, *arguments)
    with pytest.raises(torchs.type) as mine:
        getattr(functional, name)(x, *arguments)
    assert str(mine.value) == str(torchs.value)


@pytest.mark.parametrize(
    "module",
    (
        ours.MaxPool1d(3, 2, return_indices=True), ours.AvgPool1d(2, padding=1), ours.LPPool1d(3, 2),
        ours.AdaptiveMaxPool1d(3), ours.AdaptiveAvgPool1d(3),
    ),
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_modules(module, device):
    x = normal((2, 5, 9), torch.float64, device).abs()
    torch.testing.assert_close(module(x), super(type(module), module).forward(x))
