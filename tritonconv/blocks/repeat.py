"""Repeats an inference call of a convolution block whose like was made before.

The checks and look-ups of a call take longer than a small kernel. So each convolution keeps the last call made of it:
what led to it, and the bound kernel. A call that finds everything as it was runs the kernel at once. Values may change,
but for the weight's, which are packed; shapes and dtypes may not, since a kernel would read beyond its memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import is_, itemgetter

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import choice, engines
from ..geometry import Pair
from ..launch import conv as launch
from ..launch import conv_pool
from ..launch.common import precision_of
from ..launch.norm import ABSENT, Norm
from ..launch.packing import Snapshot
from ..ops.activations import Text, in_order
from ..ops.conv import formatted, geometry_of, gives_channels_last
from ..ops.conv1d import geometry_1d, image
from ..ops.conv_pool import takes
from ..ops.epilogue import suits, with_slopes
from ..ops.interior import is_inside
from ..ops.norm import unsupported
from ..ops.support import fits, is_channels_last, is_listened_to, is_profiled, nchw, unsupported_call
from . import calls

_IMMUTABLE = int, float, str, tuple, type(None)


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """`given` (modules, or what stands for them) must be the same, `operands` equal. `entries`: from dictionaries, the
    very objects that must be there. `empty`: dictionaries that must be, of hooks; `states`: those of attributes, which
    must have no forward. `tensors` must lie `where` they were.
    """

    given: tuple
    operands: tuple
    entries: tuple[tuple[dict, Callable[[dict], tuple], tuple], ...]
    empty: tuple[dict, ...]
    states: tuple[dict, ...]
    tensors: tuple[Tensor, ...]
    where: list[int]
    snapshot: Snapshot
    run: Callable[[Tensor, Tensor | None], Tensor]


_last: dict[int, tuple[weakref.ref, Call]] = {}


def again(conv: nn.Conv1d | nn.Conv2d, given: tuple, x: Tensor, residual: Tensor | None = None) -> Tensor | None:
    """What a block of `conv` and `given` computes, if its last call was like this one."""
    if not _repeatable(x):
        return None
    _, last = _last.get(id(conv), (None, None))
    if last is None or len(given) != len(last.given) or not all(map(is_, given, last.given)):
        return None
    if _operands(x, residual) != last.operands:
        return None
    if given and (any(last.empty) or _has_any_global_hook()):
        return None
    try:
        for entries, get, values in last.entries:
            if not all(map(is_, get(entries), values)):
                return None
    except KeyError:  # a parameter that is computed now
        return None
    if any("forward" in state for state in last.states):
        return None
    if _where(last.tensors) != last.where or not last.snapshot.shows(last.tensors[0]):
        return None
    return last.run(x, residual)


def first(
    conv: nn.Conv1d | nn.Conv2d,
    given: tuple,
    norm: nn.Module | tuple | None,
    activation: Text,
    x: Tensor,
    residual: Tensor | None = None,
    window: Pair | None = None,
    extra_padding: tuple[int, ...] = (),
    inner: str | None = None,
) -> Tensor | None:
    """activation(norm(inner(conv(x))) + residual), max-pooled if there is a window, which calls like this one will
    repeat; None if it takes the long way. The activations are canonical, `extra_padding` is that of
    `calls.convolution`."""
    if not _repeatable(x) or (isinstance(norm, nn.Module) and norm.training):
        return None
    if isinstance(norm, tuple) and len(norm) == 2:  # computed at every call
        return None
    own = conv._parameters
    if own.get("weight") is None or "bias" not in own:  # parametrized or pruned: it is computed at every call
        return None
    modules = [module for module in (conv, *given) if isinstance(module, nn.Module)]
    entries = [entry for module in modules for entry in _entries(module)]
    values = [*(value for _, _, held in entries for value in held), *(t for t in given if isinstance(t, Tensor))]
    if not all(isinstance(value, (*_IMMUTABLE, Tensor)) for value in values):
        return None
    run = _bound(conv, norm, activation, x, residual, window, extra_padding, inner)
    if run is None:
        return None
    tensors = own["weight"], *(value for value in values if isinstance(value, Tensor))
    call = Call(
        given,
        _operands(x, residual),
        tuple(entries),
        tuple(hooks for module in modules for hooks in hooks_of(module) if given),  # else they see all there is
        tuple(module.__dict__ for module in modules),
        tensors,
        _where(tensors),
        Snapshot.of(conv.weight),
        run,
    )
    key = id(conv)
    _last[key] = weakref.ref(conv, lambda _: _last.pop(key, None)), call
    return run(x, residual)


def forget() -> None:
    """Makes the next calls ask again which kernel, in which configuration, to run."""
    _last.clear()


def hooks_of(module: nn.Module) -> tuple[dict, ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def _repeatable(x: Tensor) -> bool:
    """Whether a call with `x` may be one, or repeat one."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or choice.is_asked():
        return False
    if is_listened_to() or is_profiled():
        return False
    return unsupported_call(x) is None and not torch.is_autocast_enabled(x.device.type)


def _operands(x: Tensor, residual: Tensor | None) -> tuple:
    """All that the choice of a kernel depends on but for the modules."""
    operands = x.shape, x.stride(), x.dtype, x.device, engines.engine_for(x.device), precision_of(x), is_inside()
    if residual is None:
        return operands
    return *operands, type(residual), residual.shape, residual.stride(), residual.dtype, residual.device


def _entries(module: nn.Module) -> Iterator[tuple[dict, Callable[[dict], tuple], tuple]]:
    """Its settings, parameters and buffers."""
    for own in (module.__dict__, module._parameters, module._buffers):
        names = [name for name in own if not name.startswith("_")]
        if names:
            get = itemgetter(*names, names[0])  # of one name alone it would give no tuple
            yield own, get, get(own)


def _where(tensors: tuple[Tensor, ...]) -> list[int]:
    """Where they lie, and how long they are."""
    return [*map(Tensor.data_ptr, tensors), *map(Tensor.nbytes.__get__, tensors)]


def _bound(
    conv, norm, activation, x, residual, window, extra, inner
) -> Callable[[Tensor, Tensor | None], Tensor] | None:
    """The kernel for such a call, all but input and residual given; None where there is none."""
    weight, bias = conv.weight, conv.bias
    problem = x, weight, bias, conv.stride, calls.padding_of(conv, extra), conv.dilation, conv.groups
    rows = weight.dim() == 3
    geometry = geometry_1d(*problem, extra or (0, 0)) if rows else geometry_of(*problem)
    if isinstance(geometry, str) or x.dim() != weight.dim() or weight.is_inference():  # it has no version counter
        return None
    op, (_, *others), options = calls.convolution(conv, norm, x, residual, activation, window, extra, inner)
    if choice.torch_is_faster(op, (x, *others), options):
        theirs = choice.torchs(op)
        del options["residual"]  # it comes with every call
        return lambda x, residual: theirs(x, *others, residual=residual, **options)
    if rows:
        if residual is not None and residual.dim() != 3:
            return None
        channels_last, x, residual = is_channels_last(weight.unsqueeze(-2)), image(x), image(residual)
    else:
        channels_last = gives_channels_last(x, weight)
    if residual is not None and not fits(residual, geometry.output, x, channels_last):
        return None
    if not suits(activation, geometry.K, x, True):
        return None
    given = ABSENT
    if norm is not None:
        *tensors, training, _, eps = calls.statistics(norm)
        given = Norm(*tensors, eps)
        if training or unsupported(geometry.output, x, False, given[:2], given[2:4]):
            return None
    given, text = with_slopes(given, activation)
    text = in_order(inner, text)
    vectors = bias, *given[:4], given.slope
    if not all(t is None or t.is_contiguous() for t in vectors):  # a kernel would get copies, which grow old
        return None
    if window is None:
        run = launch.bind_fprop(x, weight, bias, geometry, text, norm=given)
    elif residual is None and inner is None and takes(x, geometry, window, activation):
        pooled = conv_pool.bind_fprop(x, weight, bias, geometry, window, text, norm=given)
        run = lambda x, residual: pooled(x)  # noqa: E731
    else:
        return None
    if rows:
        return lambda x, residual: formatted(run(image(x), image(residual)), geometry, channels_last).squeeze(-2)
    return run if channels_last else lambda x, residual: nchw(run(x, residual))
