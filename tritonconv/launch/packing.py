"""Weights packed into the panels that the kernels read: [groups, tiles, reduction, BN], zero beyond the last channel.

A tile of a GEMM's right operand is then one contiguous piece of memory. Packs are kept for as long as their weight
lives and stays as it was.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.weak import WeakIdKeyDictionary
from triton import cdiv

from .. import engines
from ..configs.tile import kind_of
from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels import packing as kernels
from .common import prepare
from .room import empty, lasting

# From [groups, Kg, Cg, R, S] to [groups, R, S, reduced channels, columns].
_LAYOUTS = {"fprop": (0, 3, 4, 2, 1), "dgrad": (0, 3, 4, 1, 2)}
_SPREAD = 0, 1, 3, 4, 2  # to [groups, reduced channels, R, S, columns]


class Snapshot(NamedTuple):
    """What tells that a weight is as it was.

    Its version counter misses writes through `weight.data`, by which hand-written optimizers and moving averages of
    weights change all elements; `probe` is a view of some of them and `seen` what it held. On a GPU, where a look at
    them would wait for the kernels that run, both are None. The view does not keep the memory, of which FSDP must be
    able to let go, so it may be read only while the weight still has this address and shape.
    """

    version: int
    address: int
    shape: torch.Size
    probe: np.ndarray | None
    seen: bytes | None

    @staticmethod
    def of(weight: Tensor) -> Snapshot:
        probe = None
        if weight.device.type == "cpu":
            some = weight.detach()[:: 1 + weight.shape[0] // 16][(slice(None), *(0,) * (weight.dim() - 1))]
            size, stride = some.itemsize, some.stride(0) * some.itemsize
            memory = (ctypes.c_char * ((len(some) - 1) * stride + size)).from_address(some.data_ptr())
            probe = np.ndarray(len(some), f"i{size}", memory, strides=(stride,))  # NumPy is quick at few numbers
        seen = None if probe is None else probe.tobytes()
        return Snapshot(weight._version, weight.data_ptr(), weight.shape, probe, seen)

    def shows(self, weight: Tensor) -> bool:
        there = self.address == weight.data_ptr() and self.shape == weight.shape
        unchanged = there and self.version == weight._version
        return unchanged and (self.probe is None or self.probe.tobytes() == self.seen)


# weight -> (its snapshot, its packs by key); weak, so that packs go with their weight.
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def kept(weight: Tensor, key: Hashable, keep: bool, make: Callable[[], Tensor]) -> Tensor:
    """`make()`, a pack of the weight, or what an earlier call with this key made of it, the same as it is now.

    `keep`: whether the pack may serve again, which that of a weight in training cannot.
    """
    if not keep or weight.is_inference() or engines.is_listing():  # an inference tensor has no version counter
        _kept.pop(weight, None)  # who trains may write to it in ways that do not show
        return make()
    snapshot, packs = _kept.get(weight, (None, None))
    if snapshot is None or not snapshot.shows(weight):
        packs = {}
        _kept[weight] = Snapshot.of(weight), packs
    if key not in packs:
        packs[key] = make()
    return packs[key]


def packs(weight: Tensor) -> list[Tensor]:
    """What `kept` holds of the weight."""
    return list(_kept.get(weight, (None, {}))[1].values())


def panels(
    weight: Tensor, geometry: ConvGeometry, layout: str, BN: int, keep: bool, turned: bool = False
) -> Tensor:
    """Panels [groups, ⌈columns/BN⌉, reduced, BN] of a weight [K, C/groups, R, S], R left out of a 1-D one; or, if
    `turned`, [groups, ⌈columns/BN⌉, BN, reduced], rounded to TF32.

    `layout` "fprop" reduces over taps and input channels and has output channels as columns; "dgrad" exchanges the
    channels; "spread" reduces over output channels and has taps and input channels as columns.
    """
    if not keep:
        _kept.pop(weight, None)
        return _packed(weight, geometry, layout, BN, turned)
    if engines.is_listing():  # nobody reads it
        return weight.detach()
    key = layout, BN, geometry.groups, geometry.K
    if turned:
        return kept(weight, (*key, turned), keep, lambda: _packed(weight, geometry, layout, BN, turned))
    return kept(weight, key, keep, lambda: _pack(weight, geometry, layout, BN))


def _pack(weight: Tensor, geometry: ConvGeometry, layout: str, BN: int) -> Tensor:
    g = geometry
    panels = weight.detach().reshape(g.groups, g.Kg, g.Cg, g.R, g.S)
    if layout == "spread":
        panels = panels.permute(_SPREAD).flatten(2)[:, None, None]
    else:
        panels = panels.permute(_LAYOUTS[layout])
    if panels.shape[-1] % BN:
        panels = pad(panels, (0, -panels.shape[-1] % BN))
    panels = panels.unflatten(-1, (-1, BN)).permute(0, 4, 1, 2, 3, 5)
    # The one copy; made even where the weight lies so already, since a pack must not be a view of it.
    return lasting(panels.shape, panels.dtype, panels.device).copy_(panels).flatten(2, 4)


def in_tiles(panels: Tensor, BN: int) -> Tensor | None:
    """Panels that are kept of a weight in tiles of BN columns, which are kept, too; None where they are no weight's."""
    for _, packs in list(_kept.data.values()):  # others may pack meanwhile
        for key, pack in list(packs.items()):
            if pack is panels:
                layout, _, groups, K = key
                return packs.setdefault((layout, BN, groups, K), _retiled(panels, K // groups, BN))
    return None


def _retiled(panels: Tensor, columns: int, BN: int) -> Tensor:
    rows = panels.transpose(1, 2).flatten(2)[..., :columns]  # [groups, reduced, columns]
    rows = pad(rows, (0, -columns % BN)).unflatten(-1, (-1, BN)).transpose(1, 2)
    return lasting(rows.shape, rows.dtype, rows.device).copy_(rows)


def pack_launch(
    target: str, shape: tuple[int, ...], strides: tuple[int, ...], BN: int, turned: bool = False
) -> Launch:
    """Tensors: a weight, seen as [groups, taps, rows, columns] with these strides, and its panels."""
    groups, taps, rows, columns = shape
    BK = 16 if kind_of(target) in ("cuda", "hip") else 64
    grid = taps * cdiv(rows, BK), cdiv(columns, BN), groups
    beside = {"ROWS_BESIDE": strides[2] == 1, "COLUMNS_BESIDE": strides[3] == 1}
    constexprs = {**beside, "TURNED": turned, "BK": BK, "BN": BN}
    return Launch(kernels.pack, grid, (rows, columns, *strides), constexprs, 4, 1)


def _packed(weight: Tensor, geometry: ConvGeometry, layout: str, BN: int, turned: bool) -> Tensor:
    """The same by a kernel, which has to be there first, but then takes one launch."""
    g = geometry
    seen = weight.detach().reshape(g.groups, g.Kg, g.Cg, g.R, g.S)
    if layout == "spread" or seen.stride(3) != g.S * seen.stride(4):
        seen = seen.permute(_SPREAD).contiguous().permute(0, 1, 4, 2, 3)
    group, k, c, _, tap = seen.stride()
    shape, strides = {
        "fprop": ((g.groups, g.taps, g.Cg, g.Kg), (group, tap, c, k)),
        "dgrad": ((g.groups, g.taps, g.Kg, g.Cg), (group, tap, k, c)),
        "spread": ((g.groups, 1, g.Kg, g.taps * g.Cg), (group, 0, k, c)),
    }[layout]
    launch, run = prepare(weight.device, pack_launch, shape, strides, BN, turned)
    reduced = shape[1] * shape[2]
    last = (BN, reduced) if turned else (reduced, BN)
    panels = empty(weight, (g.groups, launch.grid[1], *last))
    run(seen, panels)
    return panels
