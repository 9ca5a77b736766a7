"""The compiler's intermediate representation: what one fused block is made of, and how it runs.

A block names modules by their path below the *owner*, the module whose forward calls them, and holds no module,
parameter or shape. So it survives deepcopy, a new input size and a module that is moved or retrained.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

from ..choice import faster
from ..geometry import Pair
from ..ops import activations
from ..ops.activations import Text
from ..ops.conv import geometry_of
from ..ops.linear import linear as fully_connected
from ..ops.support import pair
from . import calls, repeat

# The activations that are modules, as text or slopes; a module is asked at every call, since its numbers may change.
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
    nn.PReLU: lambda module: module.weight,
}


UNKNOWN = ""


def _name(activation: str | None) -> str | None:
    return activation and activation.partition("(")[0]


@dataclass(frozen=True)
class ConvBlock:
    """Convolution, bias, an inner activation, batch norm, the addition of a residual, activation, max-pooling.

    `kind` is the convolution's function. Where padding comes before it, `padding` is that, as `F.pad` takes it; where
    what a 1-D one padded itself is sliced off after it, it is negative.
    `norm_call`: whether the forward normalizes by calls, and no module of torch's does. `activation` is its text;
    `activation_module` is None where the forward calls a function instead, and `slopes` then the path of the parameter
    that it hands to PReLU. So it is with `inner`, which has no slopes. Of `window` and `pool_module`, too, one is None,
    or both without pooling; `ceil_mode` goes with `window`. `pool_first`: whether the activation comes last.
    """

    kind: str
    conv: str
    padding: tuple[int, ...] = ()
    inner: str | None = None
    inner_module: str | None = None
    norm: str | None = None
    norm_call: bool = False
    residual: bool = False
    activation: str | None = None
    activation_module: str | None = None
    slopes: str | None = None
    window: Pair | None = None
    ceil_mode: bool = False
    pool_module: str | None = None
    pool_first: bool = False

    @property
    def pools(self) -> bool:
        return self.window is not None or self.pool_module is not None

    @property
    def pattern(self) -> str:
        last = self._ordered(_name(self.activation), self.pools and "max_pool2d")
        pad = max(self.padding, default=0) > 0 and "pad"
        slice = min(self.padding, default=0) < 0 and "slice"
        norm = (self.norm or self.norm_call) and "batch_norm"
        parts = pad, self.kind, slice, _name(self.inner), norm, self.residual and "add", *last
        return "+".join(part for part in parts if part)

    @property
    def site(self) -> str:
        """The path of the module that the block goes by; None where a call is all there is."""
        return self.conv

    @property
    def members(self) -> tuple[str, ...]:
        last = self._ordered(self.activation_module, self.pool_module)
        paths = self.conv, self.inner_module, self.norm, *last
        return tuple(path for path in paths if path is not None)

    def _ordered(self, activation, pool) -> tuple:
        return (pool, activation) if self.pool_first else (activation, pool)


@dataclass(frozen=True)
class ActivatedBlock:
    """A module of another kind, or a call of F.batch_norm, and the batch norm and the activation after it."""

    kind: str
    module: str | None
    norm: str | None = None
    norm_call: bool = False
    activation: str | None = None
    activation_module: str | None = None
    slopes: str | None = None

    @property
    def pattern(self) -> str:
        norm = (self.norm or self.norm_call) and "batch_norm"
        parts = self.kind, norm, _name(self.activation)
        return "+".join(part for part in parts if part)

    @property
    def site(self) -> str | None:
        return self.module

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(path for path in (self.module, self.norm, self.activation_module) if path is not None)


@dataclass(frozen=True)
class PoolBlock:
    """Pooling, `pattern` being the function's name. `pool` is None where the forward calls that, and no module."""

    pattern: str
    pool: str | None = None

    @property
    def site(self) -> str | None:
        return self.pool

    @property
    def members(self) -> tuple[str, ...]:
        return () if self.pool is None else (self.pool,)


@dataclass(frozen=True)
class CallBlock:
    """A convolution whose function the forward calls on parameters, and what comes after it; the rest as above."""

    function: str
    padding: tuple[int, ...] = ()
    inner: str | None = None
    inner_module: str | None = None
    residual: bool = False
    activation: str | None = None
    activation_module: str | None = None
    slopes: str | None = None

    @property
    def pattern(self) -> str:
        pad = max(self.padding, default=0) > 0 and "pad"
        parts = pad, self.function, _name(self.inner), self.residual and "add", _name(self.activation)
        return "+".join(part for part in parts if part)

    @property
    def site(self) -> None:
        return None

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(path for path in (self.inner_module, self.activation_module) if path is not None)


Block = ConvBlock | ActivatedBlock | PoolBlock | CallBlock


def intercepted(module: nn.Module) -> bool:
    """Whether calling `module` does more than run its class's forward: a hook, or a forward of the instance's own."""
    return any(repeat.hooks_of(module)) or "forward" in module.__dict__ or _module._has_any_global_hook()


def activation_text(activation: nn.Module | Text) -> Text:
    """The text, or the slopes, of an activation that kernels know; UNKNOWN for one that they do not know."""
    if isinstance(activation, nn.Module):
        activation = ACTIVATION_MODULES[type(activation)](activation)
    try:
        return activations.canonical(activation)
    except ValueError:
        return UNKNOWN


def convolution(conv: nn.Conv1d | nn.Conv2d, input: Tensor) -> Tensor:
    """`conv(input)` as one kernel. input: (N, C, H, W) or (C, H, W), of 1-D ones (N, C, W) or (C, W)."""
    if (y := repeat.again(conv, (), input)) is not None:
        return y
    if conv.padding_mode != "zeros":  # set after patching, as is done to make images that tile
        return conv._conv_forward(input, conv.weight, conv.bias)
    if (y := repeat.first(conv, (), None, None, input)) is not None:
        return y
    op, arguments, options = calls.convolution(conv, None, input, None, None)
    return faster(op, *arguments, **options)


def conv_transpose2d(
    conv: nn.ConvTranspose2d,
    input: Tensor,
    output_size: list[int] | None = None,
    *,
    norm: nn.BatchNorm2d | None = None,
    activation: Text = None,
) -> Tensor:
    """`activation(norm(conv(input, output_size)))` as one kernel. input: (N, C, H, W) or (C, H, W)."""
    if conv.padding_mode != "zeros":  # set after patching; no other is known, and torch says so
        return nn.ConvTranspose2d.forward(conv, input, output_size)
    output_padding = conv._output_padding(
        input, output_size, conv.stride, conv.padding, conv.kernel_size, 2, conv.dilation
    )
    options = conv.stride, conv.padding, output_padding, conv.groups, conv.dilation
    if norm is None:
        return faster("conv_transpose2d", input, conv.weight, conv.bias, *options, activation=activation)
    operands = input, conv.weight, conv.bias, *calls.statistics(norm)
    return faster("conv_transpose2d_batch_norm", *operands, *options, activation=activation)


def batch_norm(
    module: nn.BatchNorm1d | nn.BatchNorm2d, input: Tensor, *, norm: None = None, activation: Text = None
) -> Tensor:
    """`activation(module(input))` in one pass. input: (N, C, H, W); of 1-D ones (N, C, L) or (N, C)."""
    module._check_input_dim(input)
    return faster("batch_norm", input, *calls.statistics(module), activation=activation)


def linear(
    module: nn.Linear, input: Tensor, *, norm: None = None, activation: str | None = None
) -> Tensor:
    """`activation(module(input))`; of one vector, in inference on a CPU, as one kernel. input: (..., C)."""
    return fully_connected(input, module.weight, module.bias, activation)


def _pooling(function: str, *attributes: str) -> Callable[[nn.Module, Tensor], Tensor | tuple[Tensor, Tensor]]:
    """What a pooling module that hands these attributes of its own to `function` runs: one kernel."""

    def run(pool: nn.Module, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return faster(function, input, *[getattr(pool, attribute) for attribute in attributes])

    return run


def max_unpool(pool: nn.MaxUnpool2d, input: Tensor, indices: Tensor, output_size=None) -> Tensor:
    return faster("max_unpool2d", input, indices, pool.kernel_size, pool.stride, pool.padding, output_size)


def side_by_side(
    kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> Pair | None:
    """The windows of a max-pooling that a convolution's kernel can do; None where it cannot: its windows lie side by
    side, and what remains at the edges is in none. With `ceil_mode` nothing may remain there."""
    window = pair(kernel_size)
    stride = window if stride in (None, [], ()) else pair(stride)
    plain = stride == window and pair(padding) == (0, 0) and pair(dilation) == (1, 1)
    return window if plain and type(ceil_mode) is bool and return_indices is False else None


def window_of(pool: nn.MaxPool2d) -> Pair | None:
    """`side_by_side` of a module."""
    return side_by_side(*(getattr(pool, name) for name in MAX_POOL))


def _leaves_edges(window: Pair | None, conv: nn.Conv2d, padding: tuple[int, ...], input: Tensor) -> bool:
    """Whether, of what `conv` gives, something remains at the edges of such windows, or no kernel knows them."""
    padding = calls.padding_of(conv, padding)
    geometry = geometry_of(input, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
    return isinstance(geometry, str) or window is None or bool(geometry.P % window[0] or geometry.Q % window[1])


def _run(activation: nn.Module | Text, value: Tensor) -> Tensor:
    if isinstance(activation, (str, Tensor)):
        return activations.activation(activations.canonical(activation)).apply(value)
    return value if activation is None else activation(value)


def conv_block(
    conv: nn.Conv1d | nn.Conv2d,
    norm: nn.Module | tuple | None,
    activation: nn.Module | Text,
    input: Tensor,
    residual: Tensor | None = None,
    pool: nn.MaxPool2d | Pair | None = None,
    ceil_mode: bool = False,
    pool_first: bool = False,
    padding: tuple[int, ...] = (),
    inner: nn.Module | str | None = None,
) -> Tensor:
    """A fused `ConvBlock` of a rewritten forward. A hook needs the values in between, so they then run one by one."""
    given = *(norm if isinstance(norm, tuple) else (norm,)), activation, pool, ceil_mode, pool_first, padding, inner
    if (y := repeat.again(conv, given, input, residual)) is not None:
        return y
    window, ceil_mode = (window_of(pool), pool.ceil_mode) if isinstance(pool, nn.Module) else (pool, ceil_mode)
    # In a graph of torch.compile sizes may be open: there it is a kernel of its own.
    if ceil_mode and (torch.compiler.is_compiling() or _leaves_edges(window, conv, padding, input)):
        last = None if pool_first else activation
        value = conv_block(conv, norm, last, input, residual, padding=padding, inner=inner)
        value = _pooled(pool, ceil_mode, value)
        return _run(activation, value) if pool_first else value
    if inner is not None and norm is not None and torch.is_grad_enabled():  # no kernel does that
        value = conv_block(conv, None, inner, input, padding=padding)
        if residual is None and isinstance(norm, nn.Module) and activation is not None:
            return activated_block(norm, None, activation, value)
        value = _normalized(norm, value)
        return _run(activation, value if residual is None else value + residual)
    text, first = activation_text(activation), activation_text(inner)
    members = (module for module in (conv, inner, norm, activation, pool) if isinstance(module, nn.Module))
    fusable = text is not UNKNOWN and conv.padding_mode == "zeros"
    fusable = fusable and first is not UNKNOWN and not isinstance(first, Tensor)
    fusable = fusable and (residual is None or isinstance(residual, Tensor))
    fusable = fusable and not (padding and isinstance(conv.padding, str) and isinstance(conv, nn.Conv2d))
    fusable = fusable and (pool is None or window is not None)
    fusable = fusable and (norm is None or input.dim() == conv.weight.dim() and calls.are_statistics(norm, conv, input))
    if not fusable or any(map(intercepted, members)):
        value = _run(inner, _padded_convolution(conv, padding, input))
        value = value if norm is None else _normalized(norm, value)
        value = value if residual is None else value + residual
        if pool_first:
            return _run(activation, _pooled(pool, ceil_mode, value))
        return _pooled(pool, ceil_mode, _run(activation, value))
    if (y := repeat.first(conv, given, norm, text, input, residual, window, padding, first)) is not None:
        return y
    op, arguments, options = calls.convolution(conv, norm, input, residual, text, window, padding, first)
    return faster(op, *arguments, **options)


def conv_call(
    function: str, inner: nn.Module | str | None, activation: nn.Module | Text, residual: Tensor | None, *args, **kwargs
) -> Tensor:
    """A fused `CallBlock` of a rewritten forward; `args` and `kwargs` are those of the function."""
    text, first = activation_text(activation), activation_text(inner)
    fusable = text is not UNKNOWN and first is not UNKNOWN and (residual is None or isinstance(residual, Tensor))
    if not fusable or any(intercepted(each) for each in (inner, activation) if isinstance(each, nn.Module)):
        value = _run(inner, faster(function, *args, **kwargs))
        return _run(activation, value if residual is None else value + residual)
    return faster(function, *args, inner=first, residual=residual, activation=text, **kwargs)


def _padded_convolution(conv: nn.Conv1d | nn.Conv2d, padding: tuple[int, ...], input: Tensor) -> Tensor:
    if min(padding, default=0) < 0:
        return conv(input)[..., : padding[1]]
    return conv(F.pad(input, padding) if any(padding) else input)


def _pooled(pool: nn.MaxPool2d | Pair | None, ceil_mode: bool, value: Tensor) -> Tensor:
    if isinstance(pool, tuple):
        return faster("max_pool2d", value, pool, pool, 0, 1, ceil_mode)
    return value if pool is None else pool(value)


def _normalized(norm: nn.Module | tuple, value: Tensor) -> Tensor:
    if isinstance(norm, nn.Module):
        return norm(value)
    return value * norm[0] + norm[1] if len(norm) == 2 else F.batch_norm(value, *norm)


def activated_norm(statistics: tuple, activation: nn.Module | Text, input: Tensor) -> Tensor:
    """A fused `ActivatedBlock` of F.batch_norm."""
    text = activation_text(activation)
    if text is UNKNOWN or (isinstance(activation, nn.Module) and intercepted(activation)):
        return _run(activation, F.batch_norm(input, *statistics))
    return faster("batch_norm", input, *statistics, activation=text)


def activated_block(
    module: nn.Module, norm: nn.Module | tuple | None, activation: nn.Module | Text, *args, **kwargs
) -> Tensor:
    """A fused `ActivatedBlock` of a rewritten forward; the arguments are those of `module`."""
    text = activation_text(activation)
    members = (each for each in (module, norm, activation) if isinstance(each, nn.Module))
    if text is UNKNOWN or any(map(intercepted, members)) or (norm is not None and args[0].dim() != 4):
        value = module(*args, **kwargs)
        return _run(activation, value if norm is None else _normalized(norm, value))
    run = next(run for cls, run in ACTIVATED.items() if isinstance(module, cls))
    return run(module, *args, **kwargs, norm=norm, activation=text)


# Modules that run with an activation in their kernel, beside convolutions.
ACTIVATED = {
    nn.ConvTranspose2d: conv_transpose2d,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.Linear: linear,
}
# The poolings, by the name of the function that computes each.
POOLS = {
    nn.MaxPool2d: "max_pool2d",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.MaxUnpool2d: "max_unpool2d",
    nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.LPPool2d: "lp_pool2d",
    nn.MaxPool1d: "max_pool1d",
    nn.AdaptiveMaxPool1d: "adaptive_max_pool1d",
    nn.AvgPool1d: "avg_pool1d",
    nn.AdaptiveAvgPool1d: "adaptive_avg_pool1d",
    nn.LPPool1d: "lp_pool1d",
}
MAX_POOL = "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
_AVG_POOL = "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"
# The modules that `patch` swaps wherever they are, and what they then run. A norm alone is not worth it.
LEAVES = {
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.ConvTranspose2d: conv_transpose2d,
    nn.Linear: linear,
    nn.MaxPool2d: _pooling("max_pool2d", *MAX_POOL),
    nn.AdaptiveMaxPool2d: _pooling("adaptive_max_pool2d", "output_size", "return_indices"),
    nn.MaxUnpool2d: max_unpool,
    nn.AvgPool2d: _pooling("avg_pool2d", *_AVG_POOL, "divisor_override"),
    nn.AdaptiveAvgPool2d: _pooling("adaptive_avg_pool2d", "output_size"),
    nn.LPPool2d: _pooling("lp_pool2d", "norm_type", "kernel_size", "stride", "ceil_mode"),
    nn.MaxPool1d: _pooling("max_pool1d", *MAX_POOL),
    nn.AdaptiveMaxPool1d: _pooling("adaptive_max_pool1d", "output_size", "return_indices"),
    nn.AvgPool1d: _pooling("avg_pool1d", *_AVG_POOL),
    nn.AdaptiveAvgPool1d: _pooling("adaptive_avg_pool1d", "output_size"),
    nn.LPPool1d: _pooling("lp_pool1d", "norm_type", "kernel_size", "stride", "ceil_mode"),
}
