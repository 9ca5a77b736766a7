"""Geometries as the lists of integers that operators of torch.library take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from ..geometry import AdaptiveGeometry, ConvGeometry, PoolGeometry, RowGeometry


def numbers(geometry: ConvGeometry | PoolGeometry | AdaptiveGeometry) -> list[int]:
    """The geometry as such a list."""
    values = *(getattr(geometry, field.name) for field in fields(geometry)), *((1,) * isinstance(geometry, RowGeometry))
    return [*_flat(values)]


def _flat(value: object) -> Iterator[int]:
    if isinstance(value, tuple):
        for each in value:
            yield from _flat(each)
    else:
        yield +value  # an integer of a bool


def from_numbers(numbers: Sequence[int]) -> ConvGeometry | PoolGeometry | AdaptiveGeometry:
    """The geometry of such a list; the kinds differ in length. Two numbers are a pair."""
    return _FROM_NUMBERS[len(numbers)](*numbers)


def _conv_geometry(N, C, H, W, K, R, S, down, right, *rest) -> ConvGeometry:
    *padding, dilation_h, dilation_w, groups = rest
    padding = tuple(padding[:2]), tuple(padding[2:])
    return ConvGeometry(N, C, H, W, K, R, S, (down, right), padding, (dilation_h, dilation_w), groups)


def _pool_geometry(N, C, H, W, R, S, *rest) -> PoolGeometry:
    *pairs, ceil_mode = rest
    return PoolGeometry(N, C, H, W, R, S, *zip(pairs[::2], pairs[1::2], strict=True), bool(ceil_mode))


def _row_geometry(*numbers) -> RowGeometry:
    *numbers, _ = numbers
    return RowGeometry.of(_conv_geometry(*numbers))


_FROM_NUMBERS = {17: _row_geometry, 16: _conv_geometry, 13: _pool_geometry, 6: AdaptiveGeometry, 2: lambda *pair: pair}
