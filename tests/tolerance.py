"""How far a result may be from the truth, which is computed in float64 from the inputs as rounded to their dtype."""

from __future__ import annotations

import torch
from torch import Tensor

# Half the distance from 1 to the next number.
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def assert_bounded(got: Tensor, exact: Tensor, magnitude: Tensor, terms: int) -> None:
    """|got − exact| ≤ u_out·|exact| + 6·√terms·u_acc·magnitude, plus half of the smallest subnormal, per element.

    `magnitude` is the same sum over absolute values, `terms` the number of its summands; the accumulator is float32, or
    float64 for float64. √terms instead of terms: rounding errors as independent (Higham and Mary 2019; Ipsen and Zhou
    2020). The factor 6 leaves room for the tail of that distribution.
    """
    accumulator = UNIT[torch.float64 if got.dtype is torch.float64 else torch.float32]
    subnormal = torch.finfo(got.dtype).smallest_normal * UNIT[got.dtype]
    bound = UNIT[got.dtype] * exact.abs() + 6 * terms**0.5 * accumulator * magnitude + subnormal
    excess = ((got.double() - exact).abs() / bound).max().item()
    assert excess <= 1, f"error is {excess:.2f} times the bound"


def assert_as_good_as(got: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """The root mean square error is at most twice torch's own (three times for half types) plus one rounding."""
    factor = 3 if got.dtype in (torch.float16, torch.bfloat16) else 2
    error, reference = ((x.double() - exact).square().mean().sqrt().item() for x in (got, torchs))
    rounding = UNIT[got.dtype] * exact.square().mean().sqrt().item() / 10
    assert error <= factor * reference + rounding, f"rms error {error:.3g}, torch's {reference:.3g}"
