"""The compiler's intermediate representation: what one fused block is made of, and how it runs.

A block names modules by their path below the *owner*, the module whose forward calls them, and holds no module,
parameter or shape. So it survives deepcopy, a new input size and a module that is moved or retrained.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules import module as _module

from . import calls, repeat
from . import nn as modules
from .choice import faster
from .ops import activations

# The activations that are modules, as text; a module is asked at every call, since its numbers may change.
ACTIVATION_MODULES = {
    nn.ReLU: lambda module: "relu",
    nn.ReLU6: lambda module: "relu6",
    nn.Sigmoid: lambda module: "sigmoid",
    nn.Tanh: lambda module: "tanh",
    nn.Hardsigmoid: lambda module: "hardsigmoid",
    nn.SiLU: lambda module: "silu",
    nn.Hardswish: lambda module: "hardswish",
    nn.GELU: lambda module: "gelu_tanh" if module.approximate == "tanh" else "gelu",
    nn.LeakyReLU: lambda module: f"leaky_relu({module.negative_slope})",
    nn.ELU: lambda module: f"elu({module.alpha})",
}


def _name(activation: str | None) -> str | None:
    return activation and activation.partition("(")[0]


@dataclass(frozen=True)
class ConvBlock:
    """Convolution, bias, batch norm, the addition of a residual, activation.

    `activation` is its text; `activation_module` is None where the forward calls a function instead.
    """

    conv: str
    norm: str | None = None
    residual: bool = False
    activation: str | None = None
    activation_module: str | None = None

    @property
    def pattern(self) -> str:
        parts = "conv2d", self.norm and "batch_norm", self.residual and "add", _name(self.activation)
        return "+".join(part for part in parts if part)

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(path for path in (self.conv, self.norm, self.activation_module) if path is not None)


@dataclass(frozen=True)
class ActivatedBlock:
    """A module of another kind, and the activation after it."""

    kind: str
    module: str
    activation: str | None = None
    activation_module: str | None = None

    @property
    def pattern(self) -> str:
        return "+".join(part for part in (self.kind, _name(self.activation)) if part)

    @property
    def members(self) -> tuple[str, ...]:
        return (self.module,) if self.activation_module is None else (self.module, self.activation_module)


@dataclass(frozen=True)
class PoolBlock:
    """Pooling, `pattern` being the function's name. `pool` is None where the forward calls that, and no module."""

    pattern: str
    pool: str | None = None

    @property
    def members(self) -> tuple[str, ...]:
        return () if self.pool is None else (self.pool,)


Block = ConvBlock | ActivatedBlock | PoolBlock


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


def activation_text(activation: nn.Module | str | None) -> str | None:
    """The text of an activation that kernels know; "" for one that they do not know."""
    if isinstance(activation, nn.Module):
        activation = ACTIVATION_MODULES[type(activation)](activation)
    try:
        return None if activation is None else activations.canonical(activation)
    except ValueError:
        return ""


def conv2d(conv: nn.Conv2d, input: Tensor) -> Tensor:
    """`conv(input)` as one kernel. input: (N, C, H, W) or (C, H, W)."""
    if conv.padding_mode != "zeros":  # set after patching, as is done to make images that tile
        return nn.Conv2d.forward(conv, input)
    repeated = repeat.inference(conv, None, None, input)
    if repeated is not None:
        return repeated
    op, arguments, options = calls.convolution(conv, None, input, None, None)
    return faster(op, *arguments, **options)


def conv_transpose2d(
    conv: nn.ConvTranspose2d, input: Tensor, output_size: list[int] | None = None, *, activation: str | None = None
) -> Tensor:
    """`activation(conv(input, output_size))` as one kernel. input: (N, C, H, W) or (C, H, W)."""
    if conv.padding_mode != "zeros":  # set after patching; no other is known, and torch says so
        return nn.ConvTranspose2d.forward(conv, input, output_size)
    output_padding = conv._output_padding(
        input, output_size, conv.stride, conv.padding, conv.kernel_size, 2, conv.dilation
    )
    options = conv.stride, conv.padding, output_padding, conv.groups, conv.dilation
    return faster("conv_transpose2d", input, conv.weight, conv.bias, *options, activation=activation)


def conv1d(conv: nn.Conv1d, input: Tensor, *, activation: str | None = None) -> Tensor:
    """`activation(conv(input))` as one kernel. input: (N, C, W) or (C, W)."""
    if conv.padding_mode != "zeros":
        return _run(activation, nn.Conv1d.forward(conv, input))
    convolution = conv.stride, conv.padding, conv.dilation, conv.groups
    return faster("conv1d", input, conv.weight, conv.bias, *convolution, activation=activation)


def batch_norm2d(norm: nn.BatchNorm2d, input: Tensor, *, activation: str | None = None) -> Tensor:
    """`activation(norm(input))` in one pass. input: (N, C, H, W)."""
    norm._check_input_dim(input)
    return faster("batch_norm", input, *calls.statistics(norm), activation=activation)


def _pooling(function: str, *attributes: str) -> Callable[[nn.Module, Tensor], Tensor | tuple[Tensor, Tensor]]:
    """What a pooling module that hands these attributes of its own to `function` runs: one kernel."""

    def run(pool: nn.Module, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return faster(function, input, *[getattr(pool, attribute) for attribute in attributes])

    return run


def _run(activation: nn.Module | str | None, value: Tensor) -> Tensor:
    if isinstance(activation, str):
        return activations.activation(activations.canonical(activation)).apply(value)
    return value if activation is None else activation(value)


def conv_block(
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    activation: nn.Module | str | None,
    input: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """A fused `ConvBlock` of a rewritten forward. A hook needs the values in between, so they then run one by one."""
    text = activation_text(activation)
    members = (module for module in (conv, norm, activation) if isinstance(module, nn.Module))
    fusable = text != "" and conv.padding_mode == "zeros" and (residual is None or isinstance(residual, Tensor))
    if not fusable or any(map(intercepted, members)) or (norm is not None and input.dim() != 4):
        value = conv(input) if norm is None else norm(conv(input))
        return _run(activation, value if residual is None else value + residual)
    repeated = repeat.inference(conv, norm, text, input, residual)
    if repeated is not None:
        return repeated
    op, arguments, options = calls.convolution(conv, norm, input, residual, text)
    return faster(op, *arguments, **options)


def activated_block(module: nn.Module, activation: nn.Module | str, *args, **kwargs) -> Tensor:
    """A fused `ActivatedBlock` of a rewritten forward; the arguments are those of `module`."""
    text = activation_text(activation)
    members = (each for each in (module, activation) if isinstance(each, nn.Module))
    if text == "" or any(map(intercepted, members)):
        return _run(activation, module(*args, **kwargs))
    run = next(run for cls, run in ACTIVATED.items() if isinstance(module, cls))
    return run(module, *args, **kwargs, activation=text)


# Modules that run with an activation in their kernel, beside Conv2d.
ACTIVATED = {nn.Conv1d: conv1d, nn.ConvTranspose2d: conv_transpose2d, nn.BatchNorm2d: batch_norm2d}
# The poolings, by the name of the function that computes each.
POOLS = {
    nn.MaxPool2d: "max_pool2d",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.MaxUnpool2d: "max_unpool2d",
    nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.LPPool2d: "lp_pool2d",
}
# The modules that `patch` swaps wherever they are, and what they then run. A norm alone is not worth it.
LEAVES = {
    nn.Conv1d: conv1d,
    nn.Conv2d: conv2d,
    nn.ConvTranspose2d: conv_transpose2d,
    nn.MaxPool2d: _pooling(
        "max_pool2d", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
    ),
    nn.AdaptiveMaxPool2d: _pooling("adaptive_max_pool2d", "output_size", "return_indices"),
    nn.MaxUnpool2d: modules.MaxUnpool2d.forward,
    nn.AvgPool2d: _pooling(
        "avg_pool2d", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    ),
    nn.AdaptiveAvgPool2d: _pooling("adaptive_avg_pool2d", "output_size"),
    nn.LPPool2d: _pooling("lp_pool2d", "norm_type", "kernel_size", "stride", "ceil_mode"),
}
