"""Upsampling in replayed calls: what is a launch there, that it gives torch's pixels, and what is left to torch."""

import pytest
import torch
import torch.nn.functional as F
from replays import CALLS, programs
from torch import nn

import tritonconv
from tritonconv.replay.upsampling import nearest


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory as torch gives it: what fills it would stand between the launches."""


X = torch.randn(2, 5, 3, 4).contiguous(memory_format=torch.channels_last)
REPEATED = {
    "by a factor": {"scale_factor": 2},
    "by a float": {"scale_factor": 3.0, "recompute_scale_factor": True},
    "along one axis": {"scale_factor": (1.0, 4.0)},
    "to a size": {"size": (6, 12), "mode": "nearest-exact"},
    "to a square": {"size": 12},
}
LEFT = {
    "between pixels": (X, {"scale_factor": 2.0, "mode": "bilinear"}),
    "by a fraction": (X, {"scale_factor": 1.5}),
    "by much": (X, {"scale_factor": 5.0}),
    "to another size": (X, {"size": (6, 9)}),
    "NCHW": (X.contiguous(), {"scale_factor": 2.0}),
    "every other row": (X[:, :, ::2], {"scale_factor": 2.0}),
    "no image": (X[:0], {"scale_factor": 2.0}),
    "of bytes": (X.to(torch.uint8), {"scale_factor": 2.0}),
    "1-D": (X[0], {"scale_factor": 2.0}),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("options", REPEATED.values(), ids=REPEATED)
def test_pixels_are_torchs(options, dtype):
    x = X.to(dtype)
    x[0, 0, 0, :2] = torch.tensor([torch.inf, torch.nan], dtype=dtype)
    with torch.no_grad():
        got, want = nearest(x, **options)(), F.interpolate(x, **options)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert got.stride() == want.stride()


@torch.no_grad()
@pytest.mark.parametrize("x, options", LEFT.values(), ids=LEFT)
def test_what_is_left_to_torch(x, options):
    assert nearest(x, **options) is None


def test_gradients_are_left_to_torch():
    assert nearest(X, scale_factor=2.0) is None


class Up(nn.Module):
    def __init__(self, module: nn.Module | None):
        super().__init__()
        self.first, self.up, self.last = nn.Conv2d(5, 8, 3), module, nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        y = self.first(x)
        return self.last(F.interpolate(y, scale_factor=2.0) if self.up is None else self.up(y))


@torch.no_grad()
@pytest.mark.parametrize("module", (None, nn.Upsample(scale_factor=2), nn.UpsamplingNearest2d((8, 8))), ids=str)
def test_a_replayed_call_is_one_of_launches(module):
    torch.manual_seed(0)
    plain = Up(module).eval().to(memory_format=torch.channels_last)
    x = torch.randn(1, 5, 6, 6).contiguous(memory_format=torch.channels_last)
    want, patched = plain(x), tritonconv.patch(plain)
    for _ in range(CALLS):
        torch.testing.assert_close(patched(x), want)
    (program,) = programs(patched)
    assert program.calls and [len(segment.jobs) for segment in program.segments] == [3]
    if module is not None:
        module.scale_factor, module.size = 3.0, None
        assert patched(x).shape == (1, 4, 12, 12)
