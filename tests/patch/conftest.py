"""Fixtures of the tests of `patch`."""

import pytest

from tritonconv import functional, repeat
from tritonconv.blocks import POOLS


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

    inference = repeat.inference

    def repeated(conv, norm, activation, *operands):
        result = inference(conv, norm, activation, *operands)
        if result is not None:
            calls.append(f"conv2d+{activation}" if activation else "conv2d")
        return result

    monkeypatch.setattr(repeat, "inference", repeated)
    spy("conv2d", lambda kwargs: f"conv2d+{kwargs['activation']}" if kwargs.get("activation") else "conv2d")
    for pool in POOLS.values():
        spy(pool, lambda kwargs, pool=pool: pool)
    return calls
