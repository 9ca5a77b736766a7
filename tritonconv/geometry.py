"""Shape arithmetic of convolution and pooling; no other module computes an output size, a padding or a count."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from fractions import Fraction

Pair = tuple[int, int]


def output_size(size: int, window: int, stride: int, padding: Pair, dilation: int, ceil_mode: bool = False) -> int:
    """Positions of a window along an axis: ⌊(size + before + after − dilation·(window − 1) − 1) / stride⌋ + 1.

    `padding` is (before, after). With `ceil_mode` the quotient is rounded up, but, as in torch, the last window starts
    inside the input or its leading padding. The result is not positive where no window fits.
    """
    span = size + sum(padding) - dilation * (window - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding[0] else count


def input_size(count: int, window: int, stride: int, padding: int, dilation: int, slack: int) -> int:
    """The size for which `output_size` is `count` at this padding on both sides, with slack < stride left over: what a
    transposed convolution of `count` positions puts out, where torch calls the slack output padding."""
    return (count - 1) * stride - 2 * padding + dilation * (window - 1) + slack + 1


def same_padding(window: int, dilation: int) -> Pair:
    """(before, after) that keep the size at stride 1; the odd one goes after, as in torch."""
    total = dilation * (window - 1)
    return total // 2, total - total // 2


@dataclass(frozen=True)
class ReceptiveField:
    """Along one axis: an element depends on at most `size` pixels of the network's input, and moving on by one element
    moves by `jump` pixels there. Padding counts as pixels."""

    size: Fraction = Fraction(1)
    jump: Fraction = Fraction(1)

    def through(self, window: int, stride: int = 1, dilation: int = 1) -> ReceptiveField:
        """Of what a window over such elements computes."""
        return ReceptiveField(self.size + dilation * (window - 1) * self.jump, self.jump * stride)

    def resized(self, size: int, output: int, window: int = 1) -> ReceptiveField:
        """Of `output` elements made of `size`: by interpolation between `window` neighbours, or by adaptive pooling."""
        if output >= size:
            return ReceptiveField(self.size + (window - 1) * self.jump, self.jump * Fraction(size, output))
        stride = size // output
        return self.through(size - (output - 1) * stride, stride)

    def transposed(self, window: int, stride: int, dilation: int) -> ReceptiveField:
        """Of what a transposed convolution computes: each output meets every stride-th tap of the window."""
        taps = -(-(dilation * (window - 1) + 1) // stride)
        return ReceptiveField(self.size + (taps - 1) * self.jump, self.jump / stride)

    def joined(self, other: ReceptiveField) -> ReceptiveField:
        """Of what is computed from both, as where branches meet."""
        return ReceptiveField(max(self.size, other.size), max(self.jump, other.jump))


@dataclass(frozen=True)
class ConvGeometry:
    """A 2-D convolution: input [N, C, H, W], weight [K, C/groups, R, S], output [N, K, P, Q].

    `padding` is ((top, bottom), (left, right)). Kernels that need per-group channel counts take `Cg` and `Kg`.
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    up = 1, 1  # see `FractionalGeometry`

    @functools.cached_property
    def P(self) -> int:
        return output_size(self.H, self.R, self.stride[0], self.padding[0], self.dilation[0])

    @functools.cached_property
    def Q(self) -> int:
        return output_size(self.W, self.S, self.stride[1], self.padding[1], self.dilation[1])

    @functools.cached_property
    def input(self) -> tuple[int, int, int, int]:
        """[N, C, H, W]"""
        return self.N, self.C, self.H, self.W

    @functools.cached_property
    def weight(self) -> tuple[int, int, int, int]:
        """[K, C/groups, R, S]"""
        return self.K, self.Cg, self.R, self.S

    @functools.cached_property
    def output(self) -> tuple[int, int, int, int]:
        """[N, K, P, Q]"""
        return self.N, self.K, self.P, self.Q

    @property
    def Cg(self) -> int:
        return self.C // self.groups

    @property
    def Kg(self) -> int:
        return self.K // self.groups

    @property
    def taps(self) -> int:
        return self.R * self.S

    @property
    def are_inside(self) -> bool:
        """Whether all windows lie inside of the image."""
        return all(pad <= 0 for axis in self.padding for pad in axis)

    def firsts(self, window: Pair) -> ConvGeometry:
        """The convolution that computes the first output of each whole window of outputs, as they lie side by side."""
        (top, bottom), (left, right) = self.padding
        stride = self.stride[0] * window[0], self.stride[1] * window[1]
        # The outputs that are in no window do not count.
        bottom, right = bottom - self.stride[0] * (self.P % window[0]), right - self.stride[1] * (self.Q % window[1])
        return replace(self, stride=stride, padding=((top, bottom), (left, right)))

    def gemm(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of the GEMM behind "fprop", "dgrad" or "wgrad", for one group.

        K is that of one tap for fprop and dgrad, and M that of dgrad's largest residue class; wgrad is one tap's GEMM.
        """
        if op == "fprop":
            return self.N * self.P * self.Q, self.Kg, self.Cg
        if op == "dgrad":
            return self.N * -(-self.H // self.stride[0]) * -(-self.W // self.stride[1]), self.Cg, self.Kg
        return self.Kg, self.Cg, self.N * self.P * self.Q

    @property
    def pointwise(self) -> bool:
        """Whether each pixel of the output depends on that of the input at the same place, and on no other."""
        return (self.taps, *self.stride) == (1, 1, 1) and self.padding == ((0, 0), (0, 0))

    @property
    def parameters(self) -> int:
        """Elements of the weight, without a bias."""
        return self.K * self.Cg * self.taps

    @property
    def flops(self) -> int:
        """Two per multiply-add, padding counted: what fprop, dgrad and wgrad each take."""
        return 2 * self.N * self.P * self.Q * self.parameters

    def bytes(self, itemsize: int) -> int:
        """Input, weight and output, each moved once."""
        elements = self.N * self.C * self.H * self.W + self.parameters + self.N * self.K * self.P * self.Q
        return elements * itemsize


@dataclass(frozen=True)
class RowGeometry(ConvGeometry):
    """A convolution of images of one row, [N, C, 1, W], whose kernels leave activations in NCHW memory."""

    @staticmethod
    def of(geometry: ConvGeometry) -> RowGeometry:
        """The same sizes, for these kernels."""
        return RowGeometry(*(getattr(geometry, field.name) for field in fields(geometry)))

    def gemm(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of the GEMM behind "conv1d_fprop" or "conv1d_dgrad", for one image and group, or "conv1d_wgrad".

        dgrad's N is that of its largest residue class.
        """
        if op == "conv1d_fprop":
            return self.Kg, self.Q, self.Cg
        if op == "conv1d_dgrad":
            return self.Cg, -(-self.W // self.stride[1]), self.Kg
        return self.Kg, self.Cg, self.Q


@dataclass(frozen=True)
class FractionalGeometry(ConvGeometry):
    """A convolution at a stride of 1/up, which is what a transposed one of stride `up` is, its window flipped: of the
    input with up − 1 zeros between its pixels."""

    up: Pair = (1, 1)

    @functools.cached_property
    def P(self) -> int:
        return output_size((self.H - 1) * self.up[0] + 1, self.R, 1, self.padding[0], 1)

    @functools.cached_property
    def Q(self) -> int:
        return output_size((self.W - 1) * self.up[1] + 1, self.S, 1, self.padding[1], 1)


class _Pooling:
    """What regular and adaptive poolings have in common."""

    @functools.cached_property
    def input(self) -> tuple[int, int, int, int]:
        """[N, C, H, W]"""
        return self.N, self.C, self.H, self.W

    @functools.cached_property
    def output(self) -> tuple[int, int, int, int]:
        """[N, C, P, Q]"""
        return self.N, self.C, self.P, self.Q


@dataclass(frozen=True)
class PoolGeometry(_Pooling):
    """A 2-D pooling with windows of R × S: input [N, C, H, W], output [N, C, P, Q]; `padding` holds for both sides."""

    N: int
    C: int
    H: int
    W: int
    R: int
    S: int
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @functools.cached_property
    def P(self) -> int:
        return output_size(self.H, self.R, self.stride[0], (self.padding[0],) * 2, self.dilation[0], self.ceil_mode)

    @functools.cached_property
    def Q(self) -> int:
        return output_size(self.W, self.S, self.stride[1], (self.padding[1],) * 2, self.dilation[1], self.ceil_mode)

    @property
    def is_global(self) -> bool:
        """Whether there is one window: the image."""
        return (self.R, self.S, *self.padding) == (self.H, self.W, 0, 0)

    @functools.cached_property
    def are_whole(self) -> bool:
        """Whether all windows lie inside of the image and its padding."""
        spans = ((size - 1) * dilation + 1 for size, dilation in zip((self.R, self.S), self.dilation, strict=True))
        axes = zip((self.H, self.W), spans, (self.P, self.Q), self.stride, self.padding, strict=True)
        return all((count - 1) * stride + span <= size + 2 * pad for size, span, count, stride, pad in axes)

    @property
    def are_inside(self) -> bool:
        """Whether all windows lie inside of the image."""
        return self.are_whole and self.padding == (0, 0)

    def divisor(self, count_include_pad: bool) -> int | str:
        """What means divide by: R·S where each window has as many pixels, else "padded" or "inside", their place."""
        if self.are_inside or (self.are_whole and count_include_pad):
            return self.R * self.S
        return "padded" if count_include_pad else "inside"


@dataclass(frozen=True)
class AdaptiveGeometry(_Pooling):
    """An adaptive 2-D pooling: window p of P over H pixels is [⌊p·H/P⌋, ⌈(p + 1)·H/P⌉); so for Q and W."""

    N: int
    C: int
    H: int
    W: int
    P: int
    Q: int

    @functools.cached_property
    def windows(self) -> Pair:
        """The pixels of the longest window, along each axis."""
        return _longest(self.H, self.P), _longest(self.W, self.Q)

    @functools.cached_property
    def coverings(self) -> Pair:
        """The windows that cover one pixel, at most, along each axis: the same with the sizes' roles exchanged."""
        return _longest(self.P, self.H), _longest(self.Q, self.W)

    def divisor(self, count_include_pad: bool) -> str:
        return "inside"


def _longest(size: int, count: int) -> int:
    return max(-(-(p + 1) * size // count) - p * size // count for p in range(count))


def adaptive_geometry(N: int, C: int, H: int, W: int, P: int, Q: int) -> PoolGeometry | AdaptiveGeometry:
    """An adaptive pooling; a regular one where the output's sizes divide the input's."""
    if H % P or W % Q:
        return AdaptiveGeometry(N, C, H, W, P, Q)
    return PoolGeometry(N, C, H, W, H // P, W // Q, (H // P, W // Q))


@dataclass(frozen=True)
class NormGeometry:
    """A batch norm over M pixels of C channels: all N·H·W of channels_last memory; where it is `planar`, [N, C, M], the
    H·W pixels of each of N images."""

    M: int
    C: int
    N: int = 1
    planar: bool = False

    @property
    def group(self) -> int:
        """How many channels of an image share statistics; 0: those of a channel are of all images."""
        return 0


@dataclass(frozen=True)
class GroupGeometry(NormGeometry):
    """A group norm of N images of M pixels, in either memory format: C channels in `groups`."""

    groups: int = 1

    @property
    def group(self) -> int:
        return self.C // self.groups
