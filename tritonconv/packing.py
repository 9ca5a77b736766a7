"""Weights packed into the panels that the kernels read: [groups, tiles, reduction, BN], zero beyond the last channel.

A tile of a GEMM's right operand is then one contiguous piece of memory. Packs are kept as long as their weight lives
unmodified.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad
from torch.utils.weak import WeakIdKeyDictionary

from .geometry import ConvGeometry

# weight -> (version and address at which it was packed, its packs); weak, so that packs go with their weight.
_packs: WeakIdKeyDictionary = WeakIdKeyDictionary()

# From [groups, Kg, Cg, R, S] to [groups, R, S, reduced channels, columns].
_LAYOUTS = {"fprop": (0, 3, 4, 2, 1), "dgrad": (0, 3, 4, 1, 2)}


def panels(weight: Tensor, geometry: ConvGeometry, layout: str, BN: int) -> Tensor:
    """Panels [groups, ⌈columns/BN⌉, R·S·reduced, BN] of a weight [K, C/groups, R, S].

    `layout` "fprop" reduces over input channels and has output channels as columns; "dgrad" the other way round.
    A weight is known by its version counter: writes through `weight.data`, which bypass it, are not seen.
    """
    if weight.is_inference():  # has no version counter
        return _pack(weight, geometry, layout, BN)
    state = (weight._version, weight.data_ptr())
    packed_at, packs = _packs.get(weight, (None, None))
    if packed_at != state:
        packs = {}
        _packs[weight] = (state, packs)
    # The geometry needs no place in the key: but for the groups it only repeats the weight's shape.
    key = (layout, BN, geometry.groups)
    if key not in packs:
        packs[key] = _pack(weight, geometry, layout, BN)
    return packs[key]


def _pack(weight: Tensor, geometry: ConvGeometry, layout: str, BN: int) -> Tensor:
    g = geometry
    weight = weight.detach().reshape(g.groups, g.Kg, g.Cg, g.R, g.S).permute(_LAYOUTS[layout])
    columns = weight.shape[-1]
    rows = weight.reshape(g.groups, -1, columns)
    rows = pad(rows, (0, -columns % BN))
    return rows.unflatten(2, (-1, BN)).transpose(1, 2).contiguous()
