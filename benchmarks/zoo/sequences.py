"""Networks over time."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Residual, channels


def time_delay(width: float = 1.0) -> nn.Module:
    """Waibel et al., "Phoneme recognition using time-delay neural networks" (1989), in the size and dilations of
    Snyder et al., "X-vectors" (2018): from 24 filter banks to 512 features a frame."""
    layers, C = [], 24
    for count, R, dilation in ((512, 5, 1), (512, 3, 2), (512, 3, 3), (512, 1, 1), (1500, 1, 1)):
        K = channels(count, width)
        layers += nn.Conv1d(C, K, R, dilation=dilation), nn.ReLU(inplace=True), nn.BatchNorm1d(K)
        C = K
    return nn.Sequential(*layers, nn.Conv1d(C, channels(512, width), 1))


class CausalConv1d(nn.Conv1d):
    """A convolution that at every step sees that step and those before it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


def causal(width: float = 1.0) -> nn.Module:
    """Bai et al., "An empirical evaluation of generic convolutional and recurrent networks for sequence modeling"
    (2018), without weight norm: 8 residual blocks, each dilated twice as far as the one before."""
    K = channels(128, width)
    layers = [nn.Conv1d(24, K, 1)]
    for level in range(8):
        body = []
        for _ in range(2):
            body += CausalConv1d(K, K, 3, dilation=2**level), nn.ReLU(inplace=True), nn.Dropout(0.1)
        layers += Residual(*body), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv1d(K, 24, 1))
