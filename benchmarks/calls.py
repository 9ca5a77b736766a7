"""Calls that launch what is beside the three products of 2-D convolution, for figures of what it becomes on GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tritonconv import functional, launch
from tritonconv.engines import Launch
from tritonconv.geometry import ConvGeometry

from .compiled import launched

BATCH = 32
f16 = torch.float16


def _empty(*shape: int) -> Tensor:
    x = torch.empty(shape, dtype=f16)
    return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x


def _trained(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Callable[[], object]:
    """Forward and backward of a function of tensors of these shapes."""

    def call() -> None:
        tensors = [_empty(*shape).requires_grad_() for shape in shapes]
        y = function(*tensors)
        torch.autograd.grad(y, tensors, torch.empty_like(y))

    return call


def _unpooled() -> None:
    y = _empty(BATCH, 64, 56, 56)
    functional.max_unpool2d(y, torch.zeros_like(y, dtype=torch.int64), 2)


def _by_winograd() -> None:
    g = ConvGeometry(BATCH, 64, 56, 56, 64, 3, 3, padding=((1, 1), (1, 1)))
    x, weight = _empty(*g.input), _empty(*g.weight)
    launch.winograd.bind_fprop(x, weight, None, g, "relu")(x, None)
    launch.winograd_wgrad.wgrad(x, x, g)


POOLED, NORMED, ROWS = (BATCH, 64, 112, 112), (BATCH, 256, 56, 56), (BATCH, 512, 1020)
IMAGES = (BATCH, 3, 224, 224)
CALLS = {
    "7×7 / 2, 3 → 64, 224²": (_trained(lambda x, w: functional.conv2d(x, w, None, 2, 3), IMAGES, (64, 3, 7, 7)),),
    "64, 112², 3×3 / 2": (
        _trained(lambda x: functional.max_pool2d(x, 3, 2, 1), POOLED),
        _trained(lambda x: functional.avg_pool2d(x, 3, 2, 1), POOLED),
    ),
    "64, 112², 7×7 / 1": (
        _trained(lambda x: functional.max_pool2d(x, 7, 1, 3), POOLED),
        _trained(lambda x: functional.avg_pool2d(x, 7, 1, 3), POOLED),
    ),
    "64, 112², global": (_trained(lambda x: functional.adaptive_avg_pool2d(x, 1), POOLED),),
    "64, 56², 2×2 / 2": (_unpooled,),
    "256, 56²": (
        _trained(
            lambda x, w, b: functional.batch_norm(x, None, None, w, b, True, activation="relu"), NORMED, (256,), (256,)
        ),
        _trained(lambda x, w, b: functional.group_norm(x, 32, w, b, activation="silu"), NORMED, (256,), (256,)),
        _trained(lambda x, w, s: functional.conv2d(x, w, groups=256, activation=s), NORMED, (256, 1, 1, 1), (256,)),
    ),
    "3×3, 64 → 64, 112², 2×2 / 2": (
        _trained(lambda x, w: functional.conv2d(x, w, None, 1, 1, max_pool=2), POOLED, (64, 64, 3, 3)),
    ),
    "3×3, 64 → 64, 56², by Winograd's algorithm": (_by_winograd,),
    "1×3 dilated 2, 512 → 512, 1×1020": (
        _trained(lambda x, w: functional.conv1d(x, w, dilation=2), ROWS, (512, 512, 3)),
    ),
    "1×4 / 2, 512 → 512, 1×1020": (_trained(lambda x, w: functional.conv1d(x, w, stride=2), ROWS, (512, 512, 4)),),
}


def others(target: str) -> Iterator[tuple[str, str, Launch, tuple[torch.dtype | None, ...]]]:
    """(layer, kernel, launch, dtypes of its tensors), each kernel of each layer once; float16."""
    for layer, calls in CALLS.items():
        seen = set()
        for call in calls:
            for made, dtypes in launched(call, target).values():
                name = made.kernel.__name__
                if name not in seen and not name.startswith(("conv_fprop", "conv_dgrad", "conv_wgrad", "depthwise")):
                    seen.add(name)
                    yield layer, name, made, dtypes
