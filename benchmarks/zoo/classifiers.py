"""Networks from an image to class scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Residual, channels, conv_bn, conv_relu, head


def lenet5(width: float = 1.0) -> nn.Module:
    """LeCun et al., "Gradient-based learning applied to document recognition" (1998), with a plain average in place of
    the subsampling's two coefficients and a linear last layer."""
    a, b, c = (channels(n, width) for n in (6, 16, 120))
    return nn.Sequential(
        *(nn.Conv2d(1, a, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(a, b, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(b, c, 5), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(c, 84), nn.Tanh(), nn.Linear(84, 10)),
    )


def _fully_connected(features: int, hidden: int) -> list[nn.Module]:
    """The three last layers of AlexNet and VGG."""
    return [
        nn.Flatten(),
        *(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout()),
        nn.Linear(hidden, 1000),
    ]


def alexnet(width: float = 1.0) -> nn.Module:
    """Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014)."""
    a, b, c, d, hidden = (channels(n, width) for n in (64, 192, 384, 256, 4096))
    return nn.Sequential(
        *(*conv_relu(3, a, 11, stride=4, padding=2), nn.MaxPool2d(3, 2)),
        *(*conv_relu(a, b, 5), nn.MaxPool2d(3, 2)),
        *(*conv_relu(b, c), *conv_relu(c, d), *conv_relu(d, d), nn.MaxPool2d(3, 2)),
        *_fully_connected(d * 6 * 6, hidden),
    )


# Convolutions per stage and their channels: configuration D.
VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def vgg16(width: float = 1.0) -> nn.Module:
    """Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015)."""
    layers, C = [], 3
    for depth, count in VGG16:
        for _ in range(depth):
            K = channels(count, width)
            layers += conv_relu(C, K)
            C = K
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *_fully_connected(C * 7 * 7, channels(4096, width)))


class Inception(nn.Module):
    """Branches of 1×1, 1×1 then 3×3, 1×1 then 5×5, pooling then 1×1, concatenated."""

    def __init__(self, C: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int):
        super().__init__()
        self.one = nn.Sequential(*conv_bn(C, one, 1))
        self.three = nn.Sequential(*conv_bn(C, reduce3, 1), *conv_bn(reduce3, three, 3))
        self.five = nn.Sequential(*conv_bn(C, reduce5, 1), *conv_bn(reduce5, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), *conv_bn(C, pooled, 1))
        self.channels = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.one(x), self.three(x), self.five(x), self.pooled(x)), 1)


# 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool projection; table 1. A None is a max-pooling.
_INCEPTIONS = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None,
    (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128), None,
    (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)  # fmt: skip


def googlenet(width: float = 1.0) -> nn.Module:
    """Szegedy et al., "Going deeper with convolutions" (2015), without the two auxiliary classifiers, and with batch
    norm in place of local response normalization."""
    a, C = (channels(n, width) for n in (64, 192))
    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)  # noqa: E731
    layers = [*conv_bn(3, a, 7, stride=2), pool(), *conv_bn(a, a, 1), *conv_bn(a, C, 3), pool()]
    for counts in _INCEPTIONS:
        if counts is None:
            layers.append(pool())
        else:
            layers.append(Inception(C, *(channels(n, width) for n in counts)))
            C = layers[-1].channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(C, 1000))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, C: int, K: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(C, K, 3, None, stride=stride)
        self.conv2, self.bn2 = conv_bn(K, K, 3, None)
        self.shortcut = _shortcut(C, K, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut; the 3×3 one has the stride, as in Goyal et al. (2017)."""

    expansion = 4

    def __init__(self, C: int, K: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(C, K, 1, None)
        self.conv2, self.bn2 = conv_bn(K, K, 3, None, stride=stride)
        self.conv3, self.bn3 = conv_bn(K, 4 * K, 1, None)
        self.shortcut = _shortcut(C, 4 * K, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def _shortcut(C: int, K: int, stride: int) -> nn.Module:
    return nn.Identity() if (C, stride) == (K, 1) else nn.Sequential(*conv_bn(C, K, 1, None, stride=stride))


def resnet_stages(block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], width: float) -> list[nn.Sequential]:
    """The stem, and the four stages, each of which halves the resolution but the first."""
    C = channels(64, width)
    stages = [nn.Sequential(*conv_bn(3, C, 7, stride=2))]
    for number, depth in enumerate(depths):
        blocks = []
        for place in range(depth):
            K = channels(64 * 2**number, width)
            blocks.append(block(C, K, stride=2 if number and not place else 1))
            C = K * block.expansion
        stages.append(nn.Sequential(*blocks))
    stages[1].insert(0, nn.MaxPool2d(3, 2, padding=1))
    return stages


def resnet18(width: float = 1.0) -> nn.Module:
    """He et al., "Deep residual learning for image recognition" (2016)."""
    return nn.Sequential(*resnet_stages(BasicBlock, (2, 2, 2, 2), width), *head(channels(512, width)))


def resnet50(width: float = 1.0, depths: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Module:
    """He et al. (2016), with bottlenecks."""
    return nn.Sequential(*resnet_stages(Bottleneck, depths, width), *head(4 * channels(512, width)))


class DenseLayer(nn.Module):
    """x, and beside it what a bottleneck of 4 · growth channels makes of it."""

    def __init__(self, C: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(C), nn.Conv2d(C, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        return torch.cat((x, y), 1)


def densenet121(width: float = 1.0, depths: tuple[int, ...] = (6, 12, 24, 16)) -> nn.Module:
    """Huang et al., "Densely connected convolutional networks" (2017): DenseNet-BC, growth rate 32."""
    growth = channels(32, width)
    C = 2 * growth
    layers = [*conv_bn(3, C, 7, stride=2), nn.MaxPool2d(3, 2, padding=1)]
    for number, depth in enumerate(depths):
        if number:  # a transition
            layers += nn.BatchNorm2d(C), nn.ReLU(inplace=True), nn.Conv2d(C, C // 2, 1, bias=False), nn.AvgPool2d(2)
            C //= 2
        layers += [DenseLayer(C + place * growth, growth) for place in range(depth)]
        C += depth * growth
    return nn.Sequential(*layers, nn.BatchNorm2d(C), nn.ReLU(inplace=True), *head(C))


# Expansion, channels, blocks, stride of the first; table 2.
_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(width: float = 1.0) -> nn.Module:
    """Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (2018)."""
    C, last = channels(32, width), channels(1280, width)
    layers = conv_bn(3, C, 3, nn.ReLU6, stride=2)
    for expansion, count, depth, first_stride in _INVERTED:
        for place in range(depth):
            K, hidden, stride = channels(count, width), C * expansion, 1 if place else first_stride
            body = conv_bn(C, hidden, 1, nn.ReLU6) if expansion > 1 else []
            body += conv_bn(hidden, hidden, 3, nn.ReLU6, stride=stride, groups=hidden)
            body += conv_bn(hidden, K, 1, None)
            layers += [Residual(*body)] if place else body
            C = K
    return nn.Sequential(*layers, *conv_bn(C, last, 1, nn.ReLU6), *head(last))
