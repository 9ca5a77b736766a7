"""Operators: kernels with their derivatives, for eager calls and, in torch.library, for compilers.

An eager call runs an `autograd.Function` around a launch. A compiler, which calls with stand-ins for tensors, gets
`torch.ops.tritonconv.<name>` into its graph: an operator that it does not look into and of which it knows the schema,
the sizes and strides of the results, and the derivative, which is made of operators again. So do modes that listen to
torch's operators; torch's counter of FLOPs knows what each takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.flop_counter import register_flop_formula

from ..geometry import AdaptiveGeometry, ConvGeometry, PoolGeometry
from .batched import one_by_one
from .encoding import from_numbers, numbers
from .support import is_listened_to, is_profiled, is_stand_in, remembered

_library = torch.library.Library("tritonconv", "DEF")
OPERATORS: dict[str, type[Operator]] = {}


class Operator(Function):
    """A subclass is an entry of the table `OPERATORS`, and defines `torch.ops.tritonconv.<name>`.

    schema: "name(arguments) -> results" as torch.library writes it; a geometry is `SymInt[]`. First comes a tensor.
    run(*inputs): launches. No result may share memory with an input.
    fake(*inputs): empty results with the sizes and strides of those of `run`.
    save(ctx, inputs, result), backward(ctx, *gradients): what torch calls `setup_context`, and the derivative by means
        of `call` of operators. An operator without them has none.
    flops(geometry): of a convolution, as torch counts them.
    """

    def __init_subclass__(cls):
        name = _library.define(cls.schema)
        OPERATORS[name] = cls
        qualified = f"tritonconv::{name}"
        _library.impl(name, _decoding(cls.run), "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, _decoding(cls.fake), lib=_library)
        if hasattr(cls, "save"):
            cls.forward = staticmethod(_forward(cls.run, cls.save))
            cls.backward = staticmethod(one_by_one(cls.backward))
            setup = _setup_context(cls.save)
            torch.library.register_autograd(qualified, cls.backward, setup_context=setup, lib=_library)
        packet = getattr(torch.ops.tritonconv, name)
        if hasattr(cls, "flops"):
            register_flop_formula(packet, get_raw=True)(_counting(cls.flops))
        cls.overload = packet.default

    @classmethod
    def call(cls, *inputs):
        """What `run` gives, differentiable if a gradient is asked for."""
        if is_stand_in(inputs[0]) or is_listened_to():
            return cls.overload(*map(_encoded, inputs))
        if torch.is_grad_enabled():
            for value in inputs:
                if isinstance(value, Tensor) and value.requires_grad:
                    return cls.apply(*inputs)
        return cls.overload(*map(_encoded, inputs)) if is_profiled() else cls.run(*inputs)


def _forward(run: Callable, save: Callable) -> Callable:
    def forward(ctx, *inputs):
        result = run(*inputs)
        save(ctx, inputs, result)
        return result

    return forward


def _setup_context(save: Callable) -> Callable:
    return lambda ctx, inputs, output: save(ctx, tuple(map(_decoded, inputs)), output)


def _decoding(function: Callable) -> Callable:
    return lambda *inputs: function(*map(_decoded, inputs))


def _counting(flops: Callable[[ConvGeometry], int]) -> Callable:
    def count(*inputs, out_val):
        (geometry,) = (value for value in map(_decoded, inputs) if isinstance(value, ConvGeometry))
        return flops(geometry)

    return count


def _encoded(value: object) -> object:
    return numbers(value) if isinstance(value, (ConvGeometry, PoolGeometry, AdaptiveGeometry)) else value


def _decoded(value: object) -> object:
    return _geometry(*value) if isinstance(value, (list, tuple)) else value


@remembered
def _geometry(*numbers: int) -> ConvGeometry | PoolGeometry | AdaptiveGeometry:
    return from_numbers(numbers)


_NUMBERS = {torch.SymInt: int, torch.SymFloat: float}
OPAQUE: list[Callable] = []  # what torch.compile is to run, with stand-ins for tensors, instead of looking into it


def opaque(function: Callable) -> Callable:
    """Makes torch.compile run `function` instead of looking into it."""

    def traced(*args):
        return function(*map(_fixed, args))

    @functools.wraps(function)
    def call(*args):
        if torch.compiler.is_compiling():
            from . import dynamo  # noqa: F401  which shows it `OPAQUE`; to import it before takes a second

            return traced(*args)
        return function(*args)

    OPAQUE.append(traced)
    return call


def _fixed(value: object) -> object:
    """A stride, an epsilon or the like, which the compiler may keep open, as the constant that it is to kernels."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_fixed, value))
    number = _NUMBERS.get(type(value))
    return value if number is None else number(value)
