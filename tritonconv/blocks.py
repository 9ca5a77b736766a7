"""The compiler's intermediate representation: what one fused block is made of, and how it runs.

A block names modules by their path below the *owner*, the module whose forward calls them, and holds no module,
parameter or shape. So it survives deepcopy, a new input size and a module that is moved or retrained.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

from . import functional

# What a block's `activation` may be, and torch's own function for it.
ACTIVATIONS = {"relu": F.relu}


@dataclass(frozen=True)
class ConvBlock:
    """Convolution, bias and activation. `activation_module` is None where the forward calls a function instead."""

    conv: str
    activation: str | None = None
    activation_module: str | None = None

    @property
    def pattern(self) -> str:
        return "conv2d" if self.activation is None else f"conv2d+{self.activation}"

    @property
    def members(self) -> tuple[str, ...]:
        return (self.conv,) if self.activation_module is None else (self.conv, self.activation_module)


@dataclass(frozen=True)
class PoolBlock:
    """Max-pooling. `pool` is None where the forward calls a function instead of a module."""

    pool: str | None = None

    @property
    def pattern(self) -> str:
        return "max_pool2d"

    @property
    def members(self) -> tuple[str, ...]:
        return () if self.pool is None else (self.pool,)


def intercepted(module: nn.Module) -> bool:
    """Whether calling `module` does more than run its class's forward: a hook, or a forward of the instance's own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _module._has_any_global_hook()
    )


def conv2d(conv: nn.Conv2d, input: Tensor, activation: str | None = None) -> Tensor:
    """`activation(conv(input))` as one kernel. input: (N, C, H, W) or (C, H, W)."""
    if conv.padding_mode != "zeros":  # set after patching, as is done to make images that tile
        output = nn.Conv2d.forward(conv, input)
        return output if activation is None else ACTIVATIONS[activation](output)
    return functional.conv2d(
        input, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups, activation=activation
    )


def max_pool2d(pool: nn.MaxPool2d, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """`pool(input)` as one kernel. input: (N, C, H, W) or (C, H, W)."""
    return functional.max_pool2d(
        input,
        pool.kernel_size,
        pool.stride,
        pool.padding,
        pool.dilation,
        ceil_mode=pool.ceil_mode,
        return_indices=pool.return_indices,
    )


def conv2d_activation(conv: nn.Conv2d, module: nn.Module | None, activation: str, input: Tensor) -> Tensor:
    """The fused node of a rewritten forward. A hook needs the values between the two, so they then run one by one."""
    if intercepted(conv) or (module is not None and intercepted(module)):
        return (module or ACTIVATIONS[activation])(conv(input))
    return conv2d(conv, input, activation)


# The modules that `patch` swaps wherever they are, and what they then run.
LEAVES = {nn.Conv2d: conv2d, nn.MaxPool2d: max_pool2d}
