"""Convolutional networks in plain torch, written from their papers: what users bring, and what is measured.

Every factory takes `width`, by which the channel counts are multiplied (Howard et al., "MobileNets", 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from . import classifiers, maps, sequences


@dataclass(frozen=True)
class Network:
    """`factory(width)` makes the network. `input`: the shape of one sample. `small`: of one that takes less time, where
    the network takes such."""

    factory: Callable[..., nn.Module]
    input: tuple[int, ...]
    small: tuple[int, ...] | None = None

    def build(self, width: float = 1.0, **options) -> nn.Module:
        """The network with random weights of He et al., "Delving deep into rectifiers" (2015): the same each time, and
        such that every layer's input shows in the output."""
        torch.manual_seed(0)
        model = self.factory(width, **options)
        for module in model.modules():
            if hasattr(module, "weight") and module.weight.dim() > 1:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return model


_IMAGE, _SMALL = (3, 224, 224), (3, 64, 64)
NETWORKS = {
    "LeNet-5": Network(classifiers.lenet5, (1, 32, 32)),
    "AlexNet": Network(classifiers.alexnet, _IMAGE),
    "VGG-16": Network(classifiers.vgg16, _IMAGE),
    "GoogLeNet": Network(classifiers.googlenet, _IMAGE, _SMALL),
    "ResNet-18": Network(classifiers.resnet18, _IMAGE, _SMALL),
    "ResNet-50": Network(classifiers.resnet50, _IMAGE, _SMALL),
    "DenseNet-121": Network(classifiers.densenet121, _IMAGE, _SMALL),
    "MobileNetV2": Network(classifiers.mobilenet_v2, _IMAGE, _SMALL),
    "U-Net": Network(maps.unet, (3, 256, 256), _SMALL),
    "DeconvNet": Network(maps.deconvnet, _IMAGE),
    "Context": Network(maps.context, (maps.CLASSES, 64, 64), (maps.CLASSES, 24, 24)),
    "TDNN": Network(sequences.time_delay, (24, 1024), (24, 32)),
    "TCN": Network(sequences.causal, (24, 1024), (24, 32)),
    "DCGAN generator": Network(maps.dcgan_generator, (100, 1, 1)),
    "DCGAN discriminator": Network(maps.dcgan_discriminator, (3, 64, 64)),
}
