"""Fixtures of the tests of `patch`."""

import pytest

from tritonconv import functional
from tritonconv.blocks import repeat
from tritonconv.blocks.modules import POOLS


@pytest.fixture
def kernel_calls(monkeypatch):
    """The patterns that ran as kernels since the last `clear()`, in order; a forward patched before does not count."""
    calls = []

    def spy(name, pattern_of):
        original = getattr(functional, name)

        def call(*args, **kwargs):
            calls.append(pattern_of(kwargs))
            return original(*args, **kwargs)

        monkeypatch.setattr(functional, name, call)

    first, again, patterns = repeat.first, repeat.again, {}

    def convolution(inner, activation, window):
        return "+".join(part for part in ("conv2d", inner, activation, window and "max_pool2d") if part)

    def called(conv, given, norm, activation, x, residual=None, window=None, extra_padding=(), inner=None):
        result = first(conv, given, norm, activation, x, residual, window, extra_padding, inner)
        if result is not None:
            patterns[conv] = convolution(inner, activation, window)
            calls.append(patterns[conv])
        return result

    def repeated(conv, *arguments):
        result = again(conv, *arguments)
        if result is not None:
            calls.append(patterns[conv])
        return result

    monkeypatch.setattr(repeat, "first", called)
    monkeypatch.setattr(repeat, "again", repeated)
    spy("conv2d", lambda kwargs: convolution(*map(kwargs.get, ("inner", "activation", "max_pool"))))
    for pool in POOLS.values():
        spy(pool, lambda kwargs, pool=pool: pool)
    return calls
