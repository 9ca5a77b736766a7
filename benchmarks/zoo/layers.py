"""What the networks are made of."""

from __future__ import annotations

from torch import Tensor, nn


def channels(count: int, width: float) -> int:
    """`count` channels of the published network, times `width`; at least 4, to which every layer comes at width 0."""
    return max(4, round(count * width))


def conv_bn(C: int, K: int, R: int = 3, activation: type[nn.Module] | None = nn.ReLU, **options) -> list[nn.Module]:
    """Convolution with "same" padding at stride 1, batch norm, activation (Ioffe and Szegedy 2015)."""
    layers = [nn.Conv2d(C, K, R, padding=R // 2, bias=False, **options), nn.BatchNorm2d(K)]
    return layers if activation is None else [*layers, activation(inplace=True)]


def conv_relu(C: int, K: int, R: int = 3, **options) -> list[nn.Module]:
    return [nn.Conv2d(C, K, R, **{"padding": R // 2} | options), nn.ReLU(inplace=True)]


def head(features: int, classes: int = 1000) -> list[nn.Module]:
    """Global average pooling and a classifier (Lin et al., "Network in network", 2014)."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


class Residual(nn.Module):
    """x + body(x) (He et al. 2016)."""

    def __init__(self, *body: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
