"""How a fused block runs: as kernels, or, where a call is otherwise than the block, as its modules one by one."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..choice import faster, is_nhwc
from ..geometry import Pair
from ..ops import activations
from ..ops.activations import Text
from ..ops.conv import geometry_of
from ..ops.support import pair
from . import calls, repeat
from .modules import ACTIVATED, UNKNOWN, activation_text, commute, intercepted, window_of


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
    fusable = (
        text is not UNKNOWN
        and first is not UNKNOWN
        and not isinstance(first, Tensor)
        and conv.padding_mode == "zeros"
        and not (padding and isinstance(conv.padding, str) and isinstance(conv, nn.Conv2d))
        and (norm is None or input.dim() == conv.weight.dim() and calls.are_statistics(norm, conv, input))
        and (residual is None or isinstance(residual, Tensor))
        and (pool is None or window is not None)
        and not any(map(intercepted, members))
    )
    if not fusable:
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


def activated_norm(
    function: str, arguments: tuple, activation: nn.Module | Text, input: Tensor, readers: Sequence[Tensor] = ()
) -> Tensor:
    """An `ActivatedBlock` of F.batch_norm or its like; `arguments` are those after the input, `readers` the weights of
    the convolutions behind it."""
    text = activation_text(activation)
    if text is UNKNOWN or (isinstance(activation, nn.Module) and intercepted(activation)):
        return _run(activation, getattr(F, function)(input, *arguments))
    return faster(function, input, *arguments, activation=text, **_kept_format(readers))


def activated_block(
    module: nn.Module,
    norm: nn.Module | tuple | None,
    activation: nn.Module | Text,
    *args,
    readers: Sequence[Tensor] = (),
    **kwargs,
) -> Tensor:
    """A fused `ActivatedBlock` of a rewritten forward; the arguments are those of `module`, `readers` the weights of
    the convolutions behind it."""
    text = activation_text(activation)
    members = (each for each in (module, norm, activation) if isinstance(each, nn.Module))
    if text is UNKNOWN or any(map(intercepted, members)) or (norm is not None and args[0].dim() != module.weight.dim()):
        value = module(*args, **kwargs)
        return _run(activation, value if norm is None else _normalized(norm, value))
    run = next(run for cls, run in ACTIVATED.items() if isinstance(module, cls))
    return run(module, *args, **kwargs, norm=norm, activation=text, **_kept_format(readers))


def _kept_format(readers: Sequence[Tensor]) -> dict[str, bool]:
    """The option by which a norm keeps the memory format of its input, where all that read it have weights in
    channels_last memory: what these make is in that format, whatever they are given."""
    return {"keeps_format": True} if readers and all(map(is_nhwc, readers)) else {}


def averaged_convolution(conv: nn.Conv2d, pool: nn.AvgPool2d | nn.AdaptiveAvgPool2d, input: Tensor) -> Tensor:
    """An `AveragedBlock` of a rewritten forward."""
    window = pair(pool.kernel_size) if isinstance(pool, nn.AvgPool2d) else (1, 1)
    fits = input.dim() in (3, 4) and input.shape[-3] == conv.in_channels
    fits = fits and all(size >= least for size, least in zip(input.shape[-2:], window, strict=True))
    if not fits or not commute(conv, pool) or intercepted(conv) or intercepted(pool):
        return pool(conv(input))
    return conv(pool(input))


def _leaves_edges(window: Pair | None, conv: nn.Conv2d, padding: tuple[int, ...], input: Tensor) -> bool:
    """Whether, of what `conv` gives, something remains at the edges of such windows, or no kernel knows them."""
    padding = calls.padding_of(conv, padding)
    geometry = geometry_of(input, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
    return isinstance(geometry, str) or window is None or bool(geometry.P % window[0] or geometry.Q % window[1])


def _run(activation: nn.Module | Text, value: Tensor) -> Tensor:
    if isinstance(activation, (str, Tensor)):
        return activations.activation(activations.canonical(activation)).apply(value)
    return value if activation is None else activation(value)


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
