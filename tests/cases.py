"""Convolutions and poolings that together cover the corners of the parameter space, and tensors for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tritonconv.geometry import ConvGeometry, PoolGeometry, output_size

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class ConvCase:
    """Arguments of conv2d: input [N, C, H, W], weight [K, C/groups, R, S]."""

    input: tuple[int, int, int, int]
    kernel: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def weight(self) -> tuple[int, int, int, int]:
        K, R, S = self.kernel
        return K, self.input[1] // self.groups, R, S

    @property
    def options(self) -> dict:
        return {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}

    @property
    def geometry(self) -> ConvGeometry:
        (top, left), (K, R, S) = self.padding, self.kernel
        padding = (top, top), (left, left)
        return ConvGeometry(*self.input, K, R, S, self.stride, padding, self.dilation, self.groups)

    def __str__(self) -> str:
        text = "x".join(map(str, self.input)) + "-" + "x".join(map(str, self.kernel))
        for letter, pair in (("s", self.stride), ("p", self.padding), ("d", self.dilation)):
            text += f"-{letter}{pair[0]}{pair[1]}"
        return f"{text}-g{self.groups}"


# Odd and tiny channel counts, each parameter different per axis, strides with classes that no tap reaches, dilations
# with and without a factor in common with the stride, depthwise with and without a multiplier.
CONV_CASES = (
    ConvCase((2, 3, 7, 6), (4, 3, 3), padding=(1, 1)),
    ConvCase((1, 17, 5, 4), (3, 1, 1)),
    ConvCase((2, 1, 8, 8), (6, 5, 5)),
    ConvCase((1, 3, 9, 7), (17, 3, 2), stride=(2, 3), padding=(1, 0)),
    ConvCase((2, 4, 6, 7), (8, 1, 1), stride=(2, 2)),
    ConvCase((1, 2, 5, 6), (1, 2, 1), stride=(3, 4), padding=(0, 3)),
    ConvCase((1, 3, 9, 10), (2, 3, 3), stride=(2, 1), padding=(2, 3), dilation=(2, 3)),
    ConvCase((1, 2, 12, 9), (3, 3, 4), stride=(4, 3), padding=(3, 2), dilation=(2, 2)),
    ConvCase((2, 6, 5, 6), (4, 3, 3), padding=(1, 0), groups=2),
    ConvCase((2, 5, 4, 60), (7, 3, 3), stride=(1, 2), padding=(1, 1)),
    ConvCase((1, 5, 6, 5), (5, 3, 3), padding=(1, 1), groups=5),
    ConvCase((1, 3, 7, 7), (6, 3, 3), stride=(2, 2), padding=(1, 1), groups=3),
    ConvCase((1, 40, 4, 4), (33, 2, 2), padding=(1, 1)),
)


@dataclass(frozen=True)
class PoolCase:
    """Arguments of max_pool2d."""

    input: tuple[int, int, int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @property
    def options(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "input"}

    @property
    def geometry(self) -> PoolGeometry:
        return PoolGeometry(*self.input, *self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


POOL_CASES = (
    PoolCase((2, 3, 6, 8), (2, 2), (2, 2)),
    PoolCase((1, 17, 7, 6), (3, 3), (2, 2), padding=(1, 1)),
    PoolCase((2, 1, 9, 7), (3, 2), (1, 3), padding=(1, 0), ceil_mode=True),
    PoolCase((1, 5, 11, 12), (3, 2), (2, 4), padding=(1, 1), dilation=(2, 3)),
    PoolCase((1, 2, 10, 9), (2, 3), (4, 4), ceil_mode=True),
)


def integers(shape, dtype=torch.float64, device="cpu", limit: int = 3, seed: int = 0) -> torch.Tensor:
    """Random integers in [−limit, limit]. Sums of a few hundred products stay exact in every dtype but the half ones,
    whose last step then rounds the exact sum."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(-limit, limit + 1, shape, generator=generator).to(device, dtype)


def normal(shape, dtype=torch.float64, device="cpu", seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def fitting(output: int, window: int, stride: int, padding: int, dilation: int, slack: int) -> int:
    """An input size for which a window has `output` positions, with `slack` < stride pixels left over."""
    size = (output - 1) * stride + dilation * (window - 1) + 1 + slack - 2 * padding
    assert output_size(size, window, stride, (padding, padding), dilation) == output
    return size
