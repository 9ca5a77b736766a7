"""From a problem to a running kernel: algorithm and tile config, grid, launch, engine.

`*_launch` are pure functions from a target and a problem to a `Launch`, which a compiler can take without a device;
they run once a problem. The others run once a call: they allocate the output, fetch the packed weight and start the
bound kernel. Activations are [N, C, H, W] tensors of any strides, and results are in channels_last memory: NHWC, as the
kernels see them. Those of 1-D convolution are in NCHW memory, and those of `norm` in that of their input.
"""

from . import (
    common,
    conv,
    conv1d,
    conv1d_winograd,
    conv_pool,
    depthwise,
    dropout,
    expansion,
    group_norm,
    linear,
    norm,
    padding,
    pool,
    split,
    winograd,
    winograd_wgrad,
)

__all__ = [
    "common",
    "conv",
    "conv1d",
    "conv1d_winograd",
    "conv_pool",
    "depthwise",
    "dropout",
    "expansion",
    "group_norm",
    "linear",
    "norm",
    "padding",
    "pool",
    "split",
    "winograd",
    "winograd_wgrad",
]
