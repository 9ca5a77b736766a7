"""What a module runs that `patch` swaps where it is, and what there is to know of an activation."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.nn.modules.instancenorm import _InstanceNorm

from ..choice import faster
from ..geometry import Pair
from ..ops import activations
from ..ops.activations import Text
from ..ops.dropout import dropout as dropped
from ..ops.epilogue import finish
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


def conv_transpose(
    conv: nn.ConvTranspose1d | nn.ConvTranspose2d,
    input: Tensor,
    output_size: list[int] | None = None,
    *,
    norm: nn.Module | None = None,
    activation: Text = None,
) -> Tensor:
    """`activation(norm(conv(input, output_size)))` as one kernel. input: (N, C, H, W) or (C, H, W), of 1-D ones
    (N, C, W) or (C, W)."""
    axes = len(conv.kernel_size)
    op = f"conv_transpose{axes}d"
    if conv.padding_mode != "zeros":  # set after patching; no other is known, and torch says so
        return (nn.ConvTranspose1d if axes == 1 else nn.ConvTranspose2d).forward(conv, input, output_size)
    output_padding = conv._output_padding(
        input, output_size, conv.stride, conv.padding, conv.kernel_size, axes, conv.dilation
    )
    options = conv.stride, conv.padding, output_padding, conv.groups, conv.dilation
    if norm is None:
        return faster(op, input, conv.weight, conv.bias, *options, activation=activation)
    operands = input, conv.weight, conv.bias, *calls.statistics(norm)
    return faster(f"{op}_batch_norm", *operands, *options, activation=activation)


def batch_norm(
    module: nn.BatchNorm1d | nn.BatchNorm2d, input: Tensor, *, norm: None = None, activation: Text = None
) -> Tensor:
    """`activation(module(input))` in one pass. input: (N, C, H, W); of 1-D ones (N, C, L) or (N, C)."""
    module._check_input_dim(input)
    return faster("batch_norm", input, *calls.statistics(module), activation=activation)


def group_norm(
    module: nn.GroupNorm, input: Tensor, *, norm: None = None, activation: Text = None, **kept: bool
) -> Tensor:
    """`activation(module(input))` in one pass. input: (N, C, H, W), (N, C, L) or (N, C). `kept`: `keeps_format`."""
    options = module.num_groups, module.weight, module.bias, module.eps
    return faster("group_norm", input, *options, activation=activation, **kept)


def instance_norm(
    module: nn.InstanceNorm1d | nn.InstanceNorm2d,
    input: Tensor,
    *,
    norm: None = None,
    activation: Text = None,
    **kept: bool,
) -> Tensor:
    """`activation(module(input))` in one pass. input: (N, C, H, W), of 1-D ones (N, C, L); what is no batch, or has not
    the channels that the module was made for, is torch's business. `kept`: `keeps_format`."""
    if input.dim() != module._get_no_batch_dim() + 1 or input.shape[1] != module.num_features:
        return finish(_InstanceNorm.forward(module, input), None, activation)
    use_input_stats = module.training or not module.track_running_stats
    options = use_input_stats, module.momentum or 0.0, module.eps
    running = module.running_mean, module.running_var
    affine = module.weight, module.bias
    return faster("instance_norm", input, *running, *affine, *options, activation=activation, **kept)


def linear(
    module: nn.Linear, input: Tensor, *, norm: None = None, activation: str | None = None
) -> Tensor:
    """`activation(module(input))`; of one vector, in inference on a CPU, as one kernel. input: (..., C)."""
    return fully_connected(input, module.weight, module.bias, activation)


def dropout(module: nn.Dropout, input: Tensor) -> Tensor:
    """`module(input)`; in training on a CPU as a kernel, with torch's numbers."""
    return dropped(input, module.p, module.training, module.inplace)


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


def commute(conv: nn.Conv2d, pool: nn.AvgPool2d | nn.AdaptiveAvgPool2d) -> bool:
    """Whether `pool(conv(x))` is `conv(pool(x))`: one takes single pixels, the other means of those in the image."""
    single = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)
    means = isinstance(pool, nn.AdaptiveAvgPool2d) or (pair(pool.padding) == (0, 0) and pool.divisor_override is None)
    return single and means


# Modules that run with an activation in their kernel, beside convolutions.
ACTIVATED = {
    nn.ConvTranspose1d: conv_transpose,
    nn.ConvTranspose2d: conv_transpose,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.GroupNorm: group_norm,
    nn.InstanceNorm1d: instance_norm,
    nn.InstanceNorm2d: instance_norm,
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
# The modules that `patch` swaps wherever they are, and what they then run. A batch norm alone is not worth it.
LEAVES = {
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.ConvTranspose1d: conv_transpose,
    nn.ConvTranspose2d: conv_transpose,
    nn.GroupNorm: group_norm,
    nn.InstanceNorm1d: instance_norm,
    nn.InstanceNorm2d: instance_norm,
    nn.Linear: linear,
    nn.Dropout: dropout,
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
