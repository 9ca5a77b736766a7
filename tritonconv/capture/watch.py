"""What a forward does beside computing, while it is traced: what it reads is noted; what no note covers is refused."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, NoneType

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

# Every module has these; all but `training` serve torch's own bookkeeping or hold what a trace looks up late.
_BOOKKEEPING = set(nn.Module().__dict__) - {"training"}
_CONSTANTS = (NoneType, bool, int, float, str, torch.dtype, type, FunctionType, BuiltinFunctionType)


class CannotTrace(Exception):
    """The reason why a forward has no trace that could stand for it."""


class NoTensors(TorchDispatchMode):
    """While tracing every value is symbolic, so the result of an operation on tensors would be frozen in the trace."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise CannotTrace(f"it calls {func} on nothing that depends on its inputs")


def is_constant(value: object) -> bool:
    return isinstance(value, _CONSTANTS) or (isinstance(value, tuple) and all(map(is_constant, value)))


@contextmanager
def watch_attributes(root: nn.Module) -> Iterator[dict[str, dict[str, object]]]:
    """Yields what fills with the plain attributes that are read, of `root` and, by their paths, of the modules in it;
    refuses every other use of state. A list is read as a copy, which must stay as it is.

    Like fx itself it hooks nn.Module for the duration; other threads pass.
    """
    reads, lists, mine = {}, {}, threading.get_ident()
    watched = {id(module): path for path, module in root.named_modules()}
    original_setattr = nn.Module.__setattr__

    def read(self, name):
        value = object.__getattribute__(self, name)
        if id(self) not in watched or threading.get_ident() != mine:
            return value
        if name not in _BOOKKEEPING and name in object.__getattribute__(self, "__dict__"):
            noted = reads.setdefault(watched[id(self)], {})
            if type(value) is list and is_constant(tuple(value)):
                noted.setdefault(name, list(value))
                return lists.setdefault((id(self), name), (list(value), noted[name]))[0]
            if not is_constant(value):
                raise CannotTrace(f"it reads {name!r}, a {type(value).__name__} of {type(self).__name__}")
            noted[name] = value
        return value

    def write(self, name, value):
        if id(self) in watched and threading.get_ident() == mine:
            raise CannotTrace(f"it sets {name!r} of {type(self).__name__}")
        original_setattr(self, name, value)

    nn.Module.__getattribute__, nn.Module.__setattr__ = read, write
    try:
        yield reads
        for (_, name), (given, noted) in lists.items():
            if given != noted:
                raise CannotTrace(f"it changes {name!r}, a list")
    finally:
        del nn.Module.__getattribute__
        nn.Module.__setattr__ = original_setattr


@contextmanager
def refuse_random_numbers() -> Iterator[None]:
    """Python's and numpy's generators; torch's are behind `NoTensors`."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
        drawn = any(np.any(new != old) for new, old in zip(np.random.get_state(), numpy_state, strict=True))
        if drawn or random.getstate() != python_state:
            raise CannotTrace("it draws random numbers")
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
