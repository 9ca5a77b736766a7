"""Networks whose output is an image or a map of scores, and one that judges images."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifiers import VGG16, BasicBlock, resnet_stages
from .layers import channels, conv_bn, conv_relu

CLASSES = 21  # of Pascal VOC


class UNet(nn.Module):
    """A ResNet-18's stages, and a decoder that at each resolution takes up what the encoder had there."""

    def __init__(self, width: float):
        super().__init__()
        self.stages = nn.ModuleList(resnet_stages(BasicBlock, (2, 2, 2, 2), width))
        skips = [channels(n, width) for n in (256, 128, 64, 64)]
        C, decoder = channels(512, width), []
        for skip, count in zip((*skips, 0), (256, 128, 64, 32, 16), strict=True):
            K = channels(count, width)
            decoder.append(nn.Sequential(*conv_bn(C + skip, K), *conv_bn(K, K)))
            C = K
        self.decoder = nn.ModuleList(decoder)
        self.scores = nn.Conv2d(C, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        for up, skip in zip(self.decoder, (*skips[-2::-1], None), strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = up(x if skip is None else torch.cat((x, skip), 1))
        return self.scores(x)


def unet(width: float = 1.0) -> nn.Module:
    """Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation" (2015), padded, on a
    ResNet-18."""
    return UNet(width)


class DeconvNet(nn.Module):
    """VGG-16 with batch norm, its fully connected layers as convolutions, and all of it mirrored: transposed
    convolutions, and unpooling to where the maxima were."""

    def __init__(self, width: float):
        super().__init__()
        down, up, C = [], [], 3
        for depth, count in VGG16:
            K = channels(count, width)
            down.append(_chain(conv_bn, C, *[K] * depth))
            up.append(_chain(_deconv_bn, *[K] * depth, C if up else K))
            C = K
        hidden = channels(4096, width)
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(reversed(up))
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.middle = nn.Sequential(
            *(nn.Conv2d(C, hidden, 7, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)),
            *conv_bn(hidden, hidden, 1),
            *(nn.ConvTranspose2d(hidden, C, 7, bias=False), nn.BatchNorm2d(C), nn.ReLU(inplace=True)),
        )
        self.scores = nn.Conv2d(channels(64, width), CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = []
        for stage in self.down:
            x, indices = self.pool(stage(x))
            places.append(indices)
        x = self.middle(x)
        for stage, indices in zip(self.up, reversed(places), strict=True):
            x = stage(self.unpool(x, indices))
        return self.scores(x)


def _chain(layers: Callable[[int, int], list[nn.Module]], *counts: int) -> nn.Sequential:
    return nn.Sequential(*(module for C, K in pairwise(counts) for module in layers(C, K)))


def _deconv_bn(C: int, K: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(C, K, 3, padding=1, bias=False), nn.BatchNorm2d(K), nn.ReLU(inplace=True)]


def deconvnet(width: float = 1.0) -> nn.Module:
    """Noh et al., "Learning deconvolution network for semantic segmentation" (2015)."""
    return DeconvNet(width)


# Channels as multiples of the classes, and dilations; table 1, "large".
_CONTEXT = ((2, 1), (2, 1), (4, 2), (8, 4), (16, 8), (32, 16), (32, 1))


def context(width: float = 1.0) -> nn.Module:
    """Yu and Koltun, "Multi-scale context aggregation by dilated convolutions" (2016): the large context module, from
    score maps to score maps."""
    layers, C = [], CLASSES
    for multiple, dilation in _CONTEXT:
        K = channels(multiple * CLASSES, width)
        layers += conv_relu(C, K, dilation=dilation, padding=dilation)
        C = K
    return nn.Sequential(*layers, nn.Conv2d(C, CLASSES, 1))


def dcgan_generator(width: float = 1.0) -> nn.Module:
    """Radford et al., "Unsupervised representation learning with deep convolutional generative adversarial networks"
    (2016): from 100 numbers to 64×64 pixels."""
    layers, C = [], 100
    for count in (1024, 512, 256, 128):
        K = channels(count, width)
        how = (4, 2, 1) if layers else (4,)  # kernel, stride, padding
        layers += nn.ConvTranspose2d(C, K, *how, bias=False), nn.BatchNorm2d(K), nn.ReLU(inplace=True)
        C = K
    return nn.Sequential(*layers, nn.ConvTranspose2d(C, 3, 4, 2, 1), nn.Tanh())


def dcgan_discriminator(width: float = 1.0) -> nn.Module:
    """Radford et al. (2016): from 64×64 pixels to the odds, as a logarithm, that they are of a photograph."""
    layers, C = [], 3
    for count in (128, 256, 512, 1024):
        K = channels(count, width)
        norm = [nn.BatchNorm2d(K)] if layers else []
        layers += nn.Conv2d(C, K, 4, 2, 1, bias=not norm), *norm, nn.LeakyReLU(0.2, inplace=True)
        C = K
    return nn.Sequential(*layers, nn.Conv2d(C, 1, 4), nn.Flatten())
