"""Along which dimension of a tensor a loop nest has its lanes: the one along which memory is best read and written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from .elements import Index
from .values import const, index, lanes

Body = Callable[[Index], object]


def order(low, shape: tuple[int, ...], body: Body) -> tuple[int, ...]:
    """The dimensions from the slowest to the fastest, which is where the lanes are best."""
    wide = [d for d in reversed(range(len(shape))) if shape[d] > 1]
    if len(wide) > 1:
        best = min(wide, key=lambda d: (cost(low, shape, body, d), -d))
    else:
        best = wide[0] if wide else len(shape) - 1
    return tuple(d for d in range(len(shape)) if d != best) + (best,)


def cost(low, shape: tuple[int, ...], body: Body, lane: int) -> float:
    """Of an element of `body` with the lanes along `lane`: it is written to a level that is thrown away."""
    e, code, depth = low.elements, low.code, low.code.depth
    saved = e.width, e.spent, e.assumed
    e.width, e.spent = min(shape[lane], low.target.lanes(4)), 0
    e.assumed, e.assume_depth = [], depth + len(shape)
    with ExitStack() as levels:
        at = [index(levels.enter_context(code.probe(n))) if n > 1 else const("index", 0) for n in shape]
        levels.enter_context(code.probe(1))
        body(tuple(lanes(i) if d == lane else i for d, i in enumerate(at)))
        found = (e.spent + 1) / e.width
    e.width, e.spent, e.assumed = saved
    return found
