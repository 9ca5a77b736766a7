"""Runs a Triton program natively and on Triton's interpreter, and compares every tensor it was given.

What differs by rounding is compared in units in the last place (ulp) of the type: 0 asks for equal values. NaNs are
equal to each other, and so are zeros.
"""

from __future__ import annotations

import torch

from tritonconv import interpreter

DTYPES = {
    "i1": torch.bool, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
    "u8": torch.uint8, "u16": torch.uint16, "u32": torch.uint32, "u64": torch.uint64,
    "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
}  # fmt: skip
INTEGERS = tuple(name for name in DTYPES if name[0] in "iu" and name != "i1")
FLOATS = tuple(name for name in DTYPES if "f" in name)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _ordered(x: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the floats `x`, one apart for neighbours."""
    bits = x.contiguous().view(_BITS[x.element_size()]).to(torch.int64)
    least = torch.iinfo(_BITS[x.element_size()]).min
    return torch.where(bits < 0, least - bits, bits)


def ulps(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """How far apart two tensors of one float type are, per element; infinitely far where one is NaN."""
    distance = (_ordered(got) - _ordered(want)).abs().double()
    distance[got.isnan() | want.isnan()] = torch.inf
    distance[got.isnan() & want.isnan()] = 0
    return distance


def assert_close(got: torch.Tensor, want: torch.Tensor, ulp: float = 0, atol: float = 0) -> None:
    """Every element within `ulp` units in the last place or within `atol`; integers must be equal."""
    assert got.dtype == want.dtype and got.shape == want.shape
    if not got.dtype.is_floating_point:
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        return
    distance = ulps(got, want)
    distance[(got.double() - want.double()).abs() <= atol] = 0
    worst = distance.argmax()
    if distance.numel():
        assert distance.max() <= ulp, (
            f"element {worst.item()}: {got.flatten()[worst].item()!r}, expected {want.flatten()[worst].item()!r} "
            f"({distance.max().item():.0f} ulp)"
        )


def check(kernel, grid: tuple[int, ...], *args, ulp: float = 0, atol: float = 0, **kwargs) -> list[torch.Tensor]:
    """Runs `kernel[grid](*args, **kwargs)` on copies of the tensors both ways; returns the native run's tensors."""

    def copies():
        return [a.clone(memory_format=torch.preserve_format) if isinstance(a, torch.Tensor) else a for a in args]

    native, expected = copies(), copies()
    kernel[grid](*native, **kwargs)
    interpreter.run(kernel, grid, *expected, **kwargs)
    pairs = [(n, e) for n, e in zip(native, expected, strict=True) if isinstance(n, torch.Tensor)]
    for got, want in pairs:
        assert_close(got, want, ulp, atol)
    return [n for n, _ in pairs]


def _special(dtype: torch.dtype) -> torch.Tensor:
    """Extremes, zeros, infinities and NaN."""
    if dtype == torch.bool:
        return torch.tensor([False, True])
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        return torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.5, info.max, info.min, info.tiny, info.tiny / 4,
                             torch.inf, -torch.inf, torch.nan], dtype=torch.float64)  # fmt: skip
    info = torch.iinfo(dtype)
    return torch.tensor([0, 1, 2, 3, 7, min(info.max, 2**63 - 1), info.max // 2 + 1 - 2**64 * (info.max > 2**63)]
                        + [info.min, info.min + 1, -1, -2, -7] * (info.min < 0))  # fmt: skip


def _random(dtype: torch.dtype, n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return 8 * torch.randn(n, generator=g, dtype=torch.float64)
    return torch.randint(-(2**62), 2**62, (n,), generator=g)


def values(dtype: torch.dtype, n: int, seed: int = 0) -> torch.Tensor:
    """`n` values: those at which mistakes show, then random ones."""
    return torch.cat([_special(dtype), _random(dtype, n, seed)])[:n].to(dtype)


def pairs(dtype: torch.dtype, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` pairs of values: all pairs of those at which mistakes show, then random ones."""
    s = _special(dtype)
    x = torch.cat([s.repeat_interleave(len(s)), _random(dtype, n, 1)])
    y = torch.cat([s.repeat(len(s)), _random(dtype, n, 2)])
    return x[:n].to(dtype), y[:n].to(dtype)
