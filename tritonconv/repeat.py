"""Repeats an inference call of a convolution block whose like was made before.

The checks and look-ups of a call take longer than a small kernel. So each convolution keeps the last call made of it:
what led to it, and the bound kernel. A call that finds everything as it was runs the kernel at once. Values may change,
but for the weight's, which are packed; shapes and dtypes may not, since a kernel would read beyond its memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import calls, choice, engines
from .geometry import Pair
from .launch import conv as launch
from .launch import conv_pool
from .launch.common import precision_of
from .launch.norm import Norm
from .ops.conv import formatted, geometry_of
from .ops.conv1d import geometry_1d, image
from .ops.conv_pool import takes
from .ops.norm import unsupported
from .ops.support import fits, is_channels_last, nchw, unsupported_call
from .packing import Snapshot


class Call(NamedTuple):
    """`settings` and `operands` must be equal, `parameters` the same and as they were `seen`."""

    settings: tuple
    operands: tuple
    parameters: list[Tensor | None]
    seen: list[tuple]
    snapshot: Snapshot
    run: Callable[[Tensor, Tensor | None], Tensor]


_last: dict[int, tuple[weakref.ref, Call]] = {}


def inference(
    conv: nn.Conv1d | nn.Conv2d,
    norm: nn.Module | None,
    activation: str | None,
    x: Tensor,
    residual: Tensor | None = None,
    window: Pair | None = None,
    extra_padding: Pair = (0, 0),
) -> Tensor | None:
    """activation(norm(conv(x)) + residual), max-pooled if there is a window, or None if it takes the long way.
    `activation` is canonical, `extra_padding` that of `functional.conv1d`."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if unsupported_call(x) is not None or torch.is_autocast_enabled(x.device.type):
        return None
    state, own = conv.__dict__, conv._parameters
    if own.get("weight") is None or "bias" not in own:  # parametrized or pruned: it is computed at every call
        return None
    parameters = [own["weight"], own["bias"]]
    settings = activation, state["stride"], state["padding"], state["dilation"], state["groups"]
    settings += engines.engine_for(x.device), precision_of(x), window, extra_padding
    if norm is not None:
        parameters += (*norm._parameters.values(), *norm._buffers.values())
        settings += norm.training, norm.eps, norm.momentum
    operands = x.shape, x.stride(), x.dtype, x.device
    if residual is not None:
        operands += type(residual), residual.shape, residual.stride(), residual.dtype, residual.device
    _, last = _last.get(id(conv), (None, None))
    if last is None or last.settings != settings or last.operands != operands or not _as_seen(last, parameters):
        call = conv, norm, activation, x, residual, window, extra_padding
        run = None if norm is not None and norm.training else _bound(*call)
        if run is None:
            return None
        last = Call(settings, operands, parameters, _look(parameters), Snapshot.of(conv.weight), run)
        key = id(conv)
        _last[key] = weakref.ref(conv, lambda _: _last.pop(key, None)), last
    return last.run(x, residual)


def forget() -> None:
    """Makes the next calls ask again which kernel, in which configuration, to run."""
    _last.clear()


def _look(parameters: list[Tensor | None]) -> list[tuple]:
    return [t if t is None else (t.data_ptr(), t.dtype, t.shape) for t in parameters]


def _as_seen(last: Call, parameters: list[Tensor | None]) -> bool:
    same = len(parameters) == len(last.parameters) and all(map(lambda a, b: a is b, parameters, last.parameters))
    return same and _look(parameters) == last.seen and last.snapshot.shows(parameters[0])


def _bound(conv, norm, activation, x, residual, window, extra) -> Callable[[Tensor, Tensor | None], Tensor] | None:
    """The kernel for such a call, all but input and residual given; None where there is none."""
    weight, bias = conv.weight, conv.bias
    problem = x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups
    rows = weight.dim() == 3
    geometry = geometry_1d(*problem, extra) if rows else geometry_of(*problem)
    if isinstance(geometry, str) or x.dim() != weight.dim() or weight.is_inference():  # it has no version counter
        return None
    op, (_, *others), options = calls.convolution(conv, norm, x, residual, activation, window, extra)
    if choice.torch_is_faster(op, (x, *others), options):
        theirs = choice.torchs(op)
        del options["residual"]  # it comes with every call
        return lambda x, residual: theirs(x, *others, residual=residual, **options)
    if rows:
        if residual is not None and residual.dim() != 3:
            return None
        channels_last, x, residual = is_channels_last(weight.unsqueeze(-2)), image(x), image(residual)
    else:
        channels_last = is_channels_last(x) or is_channels_last(weight)
    if residual is not None and not fits(residual, geometry.output, x, channels_last):
        return None
    given = None
    if norm is not None:
        given = Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
        if unsupported(geometry.output, x, False, given[:2], given[2:4]):
            return None
    vectors = [t for t in (bias, *(given or ())[:4]) if t is not None]
    if not all(t.is_contiguous() for t in vectors):  # a kernel would get copies, which grow old
        return None
    if window is None:
        run = launch.bind_fprop(x, weight, bias, geometry, activation, norm=given)
    elif residual is None and takes(x, geometry, window, activation):
        pooled = conv_pool.bind_fprop(x, weight, bias, geometry, window, activation, norm=given)
        run = lambda x, residual: pooled(x)  # noqa: E731
    else:
        return None
    if rows:
        return lambda x, residual: formatted(run(image(x), image(residual)), geometry, channels_last).squeeze(-2)
    return run if channels_last else lambda x, residual: nchw(run(x, residual))
