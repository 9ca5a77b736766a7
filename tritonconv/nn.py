"""Modules with the parameters, `state_dict` and errors of `torch.nn`, run by this project's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import functional


class _Activated:
    """A module followed by `activation` (None, one that `functional.conv2d` lists, or a `torch.nn.PReLU`) in the same
    kernel."""

    def __init__(self, *args, activation: str | torch.nn.PReLU | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.activation = activation

    @property
    def _text(self) -> str | Tensor | None:
        return self.activation.weight if isinstance(self.activation, torch.nn.PReLU) else self.activation

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation!r}" if isinstance(self.activation, str) else "")


class _Conv(_Activated):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        options = self.stride, padding, self.dilation, self.groups
        return self._function(input, weight, bias, *options, activation=self._text)


class Conv1d(_Conv, torch.nn.Conv1d):
    """`torch.nn.Conv1d`, followed by `activation`, as in `Conv2d` below, in the same kernel."""

    _function = staticmethod(functional.conv1d)


class Conv2d(_Conv, torch.nn.Conv2d):
    """`torch.nn.Conv2d`, followed by `activation` in the same kernel: None, one that `functional.conv2d` lists, or a
    `torch.nn.PReLU`, whose parameter is then one of this module's."""

    _function = staticmethod(functional.conv2d)


class _ConvTranspose(_Activated):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        axes = len(self.kernel_size)
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, axes, self.dilation
        )
        options = self.stride, self.padding, output_padding, self.groups, self.dilation
        return self._function(input, self.weight, self.bias, *options, activation=self._text)


class ConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d`, followed by `activation`, as in `Conv2d`, in the same kernel."""

    _function = staticmethod(functional.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, followed by `activation`, as in `Conv2d`, in the same kernel."""

    _function = staticmethod(functional.conv_transpose2d)


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """`torch.nn.AdaptiveMaxPool2d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """`torch.nn.MaxUnpool2d`."""

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return functional.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class AvgPool2d(torch.nn.AvgPool2d):
    """`torch.nn.AvgPool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(input, self.output_size)


class LPPool2d(torch.nn.LPPool2d):
    """`torch.nn.LPPool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class MaxPool1d(torch.nn.MaxPool1d):
    """`torch.nn.MaxPool1d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.max_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """`torch.nn.AdaptiveMaxPool1d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AvgPool1d(torch.nn.AvgPool1d):
    """`torch.nn.AvgPool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        window = self.kernel_size, self.stride, self.padding
        return functional.avg_pool1d(input, *window, self.ceil_mode, self.count_include_pad)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """`torch.nn.AdaptiveAvgPool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.adaptive_avg_pool1d(input, self.output_size)


class LPPool1d(torch.nn.LPPool1d):
    """`torch.nn.LPPool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.lp_pool1d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)
