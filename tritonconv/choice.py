"""The choice, call by call, between a kernel and torch's own function: what tuning measured to be faster.

Only patched modules choose; `tritonconv.functional` always runs kernels. A call's *key* says all that its time depends
on: sizes, dtypes, memory formats, other arguments, autocast, and whether gradients are wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import autotune
from autotune.store import canonical

from . import engines, functional
from .geometry import Pair
from .ops import activations, conv, conv1d
from .ops.epilogue import overwrite
from .ops.interior import is_inside
from .ops.support import calls, is_channels_last, unsupported_call

TORCH, KERNELS = {"algorithm": "torch"}, {"algorithm": "kernels"}
# The place of momentum among the arguments.
_MOMENTUM = {"batch_norm": 6, "instance_norm": 6} | dict.fromkeys(
    [f"{conv}{axes}d_batch_norm" for conv in ("conv", "conv_transpose") for axes in (1, 2)], 8
)


class _Asked(Exception):
    """The function, arguments and options of a call that `verdict` asks for."""


_verdicts: dict[tuple, bool] = {}
_noted: dict[str, tuple[dict, dict]] = {}  # what `note` was told, by key
_MANY = 4096  # calls of different sizes; beyond that they start afresh


def faster(op: str, input, *args, **options):
    """`functional.<op>(input, *args, **options)`, or the same by torch where that is faster for such arguments."""
    if calls.asked:
        raise _Asked(op, (input, *args), options)
    run = torchs if torch_is_faster(op, (input, *args), options) else kernels
    return run(op)(input, *args, **options)


def verdict(run: Callable[[], object]) -> bool | None:
    """Whether tuning found torch faster for the first call that `run` comes to, and at which it ends; None if that was
    not tuned, or there is none."""
    calls.asked = True
    try:
        run()
    except _Asked as call:
        op, args, options = call.args
        found = _tuned(_key(op, _at_any_momentum(op, args), options))
        return None if found is None else found == TORCH
    finally:
        calls.asked = False
    return None


def is_asked() -> bool:
    return calls.asked


@contextmanager
def recording() -> Iterator[None]:
    """Within it calls are recorded, by this thread, to be repeated without all that comes before their kernels."""
    calls.recorded = True
    try:
        yield
    finally:
        calls.recorded = False


def kernels(op: str) -> Callable:
    return getattr(functional, op)


def torchs(op: str) -> Callable:
    """torch's own functions for `functional.<op>`, one after the other."""
    convolution, norm = op.removesuffix("_batch_norm"), op.endswith("_batch_norm") and op != "batch_norm"
    function = _inner_activated(_BY_TORCH.get(convolution) or getattr(F, convolution))
    function = partial(_with_batch_norm, function) if norm else function

    def run(
        *args, residual: Tensor | None = None, activation: activations.Text = None, max_pool=None, keeps_format=False,
        **options,
    ):  # fmt: skip
        y = overwrite(function(*args, **options), residual, activations.canonical(activation))
        return y if max_pool is None else F.max_pool2d(y, max_pool)

    return run


def _inner_activated(conv: Callable) -> Callable:
    def run(*args, inner: str | None = None, **options) -> Tensor:
        return overwrite(conv(*args, **options), None, activations.canonical(inner))

    return run


def _with_batch_norm(conv, input, weight, bias, mean, var, gamma, beta, training, momentum, eps, *window, **given):
    y = conv(input, weight, bias, *window, **given)
    return F.batch_norm(y, mean, var, gamma, beta, training, momentum, eps)


def _conv1d(*args, extra_padding: Pair = (0, 0), **options) -> Tensor:
    return conv1d.by_torch(*args, **options, extra=extra_padding)


_BY_TORCH = {"conv1d": _conv1d, "conv2d": conv.by_torch}  # where torch's function takes less


def forget() -> None:
    """Makes the next calls look into the store again."""
    _verdicts.clear()


def note(key: dict, faster: dict, recorded: dict) -> None:
    """Makes calls of this key, unless they are tuned, go by `faster`, TORCH or KERNELS, and by `recorded` when they
    are."""
    _noted[canonical(key)] = faster, recorded


def torch_is_faster(op: str, args: tuple, options: dict) -> bool:
    """Whether tuning found so."""
    # Where no kernel runs it is torch's function anyway, and a compiler could not look into the store.
    if torch.compiler.is_compiling() or unsupported_call(args[0]) is not None or args[0].layout is not torch.strided:
        return False
    args = _at_any_momentum(op, args)
    engine = engines.engine_for(args[0].device)
    signature = (
        engine,
        is_inside(),
        torch.is_grad_enabled(),
        calls.recorded,
        _autocast(args[0]),
        op,
        *map(_signature, args),
        *map(_signature, options.values()),
    )
    verdict = _verdicts.get(signature)
    if verdict is None:
        if len(_verdicts) >= _MANY:
            _verdicts.clear()
        verdict = _verdicts[signature] = _stored(op, args, options)
    return verdict


def _at_any_momentum(op: str, args: tuple) -> tuple:
    """No call takes longer for its momentum, which may change with every call."""
    place = _MOMENTUM.get(op)
    return args if place is None else (*args[:place], 0.1, *args[place + 1 :])


def _signature(value: object) -> object:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    return tuple(value) if isinstance(value, list) else value


def _stored(op: str, args: tuple, options: dict) -> bool:
    if engines.engine_for(args[0].device) is None:
        return False
    key = _key(op, args, options)
    found = _tuned(key)
    if found is None:
        if calls.recorded and is_nhwc(args[0]):
            return False
        pattern = op if options.get("activation") is None else f"{op}+"
        return untuned_is_slower(pattern, args[0].device, args[0].numel(), is_nhwc(args[0]), key["backward"])
    return found == TORCH


def _key(op: str, args: tuple, options: dict) -> dict[str, object]:
    """What the store knows a call by."""
    engine, values = engines.engine_for(args[0].device), (*args, *options.values())
    return {
        "op": op,
        "target": engine.target(args[0].device),
        "arguments": list(map(_described, args)),
        "options": {name: _described(value) for name, value in options.items()},
        "autocast": _autocast(args[0]),
        "backward": torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values),
    }


def _tuned(key: dict) -> dict | None:
    found = autotune.lookup(key) or _noted.get(canonical(key), (None, None))[calls.recorded]
    if found is None and key["backward"]:  # not tuned for training, but perhaps for inference
        arguments = list(map(_without_gradient, key["arguments"]))
        given = {name: _without_gradient(value) for name, value in key["options"].items()}
        found = autotune.lookup(key | {"backward": False, "arguments": arguments, "options": given})
    return found


def untuned_is_slower(pattern: str, device: torch.device, elements: int, nhwc: bool, backward: bool = False) -> bool:
    """Whether, as far as is known without tuning, torch runs a pooling or a norm of so many elements faster than a
    kernel. `pattern`: of the function's name, and of what comes after it, if anything does."""
    engine, (name, plus, _) = engines.engine_for(device), pattern.partition("+")
    if engine is None or engine.target(device) != "cpu" or name + plus not in _ON_CPUS:
        return False
    return not _ON_CPUS[name + plus](elements, nhwc, backward)


def preference(op: str, device: torch.device) -> str:
    """Which calls of `op` run on torch unless tuned otherwise, in words; "" if none does."""
    if not untuned_is_slower(op, device, 0, False):
        return ""
    large = partial(untuned_is_slower, op, device, sys.maxsize)
    which = next((text for case, text in _WHICH.items() if large(*case)), "small ones")
    return f"on CPUs torch runs {which}, unless tuning finds the kernel faster"


# By whether large inputs, in channels_last memory or not, with a gradient or not, are among them.
_WHICH = {
    (False, True): "it",
    (False, False): "small ones, and inference",
    (True, False): "small ones, and those in channels_last memory",
}


def is_nhwc(x: Tensor) -> bool:
    """Whether it is in channels_last memory; in a model's interior all images are taken to be."""
    return x.dim() == 4 and (is_channels_last(x) or (is_inside() and type(x) is Tensor))


def _many(elements: int, nhwc: bool, enough: int) -> bool:
    """Whether there are so many in channels_last memory, or, where torch is slow, a fourth of that in NCHW."""
    return elements >= (enough if nhwc else enough // 4)


# Which poolings and norms, "+" with an activation behind them, of which inputs (and whether with a gradient) a kernel
# runs faster on CPUs, as `python -m benchmarks kernels` shows of poolings; what comes before the kernel takes longer
# than torch needs for a small one. Tuning knows better. In calls that are recorded nothing comes before, and kernels
# are faster for all that is in channels_last memory.
_ON_CPUS: dict[str, Callable[[int, bool, bool], bool]] = {
    "max_pool2d": lambda elements, nhwc, backward: _many(elements, nhwc, 1 << (18 if backward else 16)),
    "avg_pool2d": lambda elements, nhwc, backward: _many(elements, nhwc, 1 << 21) and (backward or not nhwc),
    "adaptive_max_pool2d": lambda elements, nhwc, backward: _many(elements, nhwc, 1 << 18) and not nhwc,
    "adaptive_avg_pool2d": lambda elements, nhwc, backward: False,
    "max_pool1d": lambda elements, nhwc, backward: backward and elements >= 1 << 18,
    "avg_pool1d": lambda elements, nhwc, backward: backward and elements >= 1 << 18,
    "adaptive_max_pool1d": lambda elements, nhwc, backward: False,
    "adaptive_avg_pool1d": lambda elements, nhwc, backward: False,
    "lp_pool1d": lambda elements, nhwc, backward: elements >= 1 << 18,
    "group_norm": lambda elements, nhwc, backward: False,
    "group_norm+": lambda elements, nhwc, backward: elements >= 1 << (20 if backward else 19),
    **dict.fromkeys(
        ("instance_norm", "instance_norm+"),
        lambda elements, nhwc, backward: elements >= 1 << (18 if backward else 17),
    ),
}


def _autocast(x: Tensor) -> str | None:
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return None
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.")


def _described(value: object) -> object:
    if isinstance(value, Tensor):
        return {
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "channels_last": is_nhwc(value),
            "requires_grad": value.requires_grad and torch.is_grad_enabled(),
        }
    return list(value) if isinstance(value, tuple) else value


def _without_gradient(value: object) -> object:
    return value | {"requires_grad": False} if isinstance(value, dict) else value
