"""What all measurements share: operands, the comparison with the truth, the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def integers(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    """Small ones, in float64; the same for a shape and a seed."""
    generator = torch.Generator().manual_seed(math.prod(shape) + seed)
    return torch.randint(-2, 3, shape, generator=generator).to(device, torch.float64)


def tuples(value: object) -> object:
    """Lists of JSON as the tuples that they were."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def difference(result: object, exact: Sequence[Tensor], dtype: torch.dtype, roundings: int = 1) -> str | None:
    """What is wrong with a result. So many roundings to `dtype`, and sums in float32 in whatever way, stay well within
    the bound; torch rounds after the convolution, the norm, the addition and the activation."""
    eps = roundings * torch.finfo(dtype).eps
    eps += 256 * torch.finfo(torch.float32).eps if dtype is not torch.float64 else 0
    for got, want in zip(tree_leaves(result), exact, strict=True):
        error, largest = (got.double() - want).abs().max().item(), want.abs().max().item()
        if not error <= eps * largest:
            return f"its result is wrong by {error:.2g} where the largest element is {largest:.2g}"
    return None


def clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """What gives the seconds that a call takes."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None

    def seconds(call: Callable[[], object]) -> float:
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        return time.perf_counter() - start

    return seconds
