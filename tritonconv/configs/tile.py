"""What a tile config is, and the kinds of machine that it is chosen for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..geometry import ConvGeometry


@dataclass(frozen=True)
class TileConfig:
    """A tile of BM × BN outputs, computed BK of the reduction at a time; powers of two.

    GROUP_M: tiles along M that run next to each other for each tile along N, so that they share its panel while it is
    in cache. SPLIT: parts that the reduction is cut into. `boxed`: operands come as boxes, through tensor descriptors,
    where they can. OUT: Winograd's algorithm takes BM tiles of OUT × OUT outputs. Pooling takes BM rows of BK pixels of
    BN channels, the gradient of a depthwise weight BK taps, which may be any number, a norm's sums BK times BM pixels.
    """

    BM: int
    BN: int
    BK: int = 1
    GROUP_M: int = 1
    SPLIT: int = 1
    OUT: int = 1
    num_warps: int = 1
    num_stages: int = 1
    boxed: bool = False


@dataclass(frozen=True)
class Machine:
    """What a prediction knows of a kind of target.

    So many `programs` run at a time: on a GPU one on each multiprocessor, or as many as `shared` bytes of its memory
    hold. What is done costs as many multiply-adds: starting programs `start`, a further kernel `launch`, a turn of a
    program's loop that waits `turn`, loading an element of an operand `load`, storing one `store`, adding one up with
    those of other splits `sum`. `smallest` is the least extent of a dot,
    `ragged_BK` the greatest where channels do not fill vectors of 16 bytes: their elements are loaded one by one, each
    through a pointer of its own. `together`: parts of a sum that a program adds up side by side: a GPU waits for memory
    as long for many as for one. `loops`: whether a reduction should take two turns at least, since a loop of one is
    dissolved into code that the CPU target does worse on.
    """

    programs: int
    start: int
    launch: int
    turn: int
    load: int
    smallest: int
    ragged_BK: int
    store: int = 0
    sum: int = 1
    shared: int = 0
    together: int = 1
    loops: bool = False


# Pixels that the gradient of a pointwise weight takes at a time, where the parts of a tile read them one after another:
# few enough to stay in the second-level cache, of which pixels of 2^n channels, 2^n bytes apart, share a part of the
# sets. Of other weights it is a row of the image, if that is long enough.
STRETCH = {"cpu": 256, "interpreter": 512}
_LONG = 28
# Fitted to the times of 30 tiles for fprop and dgrad of four layers of ResNet-50, 32 images in float16, on an H100.
_COSTS = {"start": 8_000_000, "launch": 3_000_000, "turn": 200_000, "load": 64, "store": 300, "sum": 300}
_GPU = {**_COSTS, "smallest": 16, "ragged_BK": 16, "together": 64}
MACHINES = {
    "cuda": Machine(132, shared=227 << 10, **_GPU),
    "hip": Machine(304, shared=64 << 10, **_GPU),
    "cpu": Machine(torch.get_num_threads(), 10_000, 0, 0, load=1, smallest=1, ragged_BK=1 << 10, loops=True),
    "interpreter": Machine(programs=1, start=1_000_000, launch=0, turn=0, load=1, smallest=1, ragged_BK=1 << 10),
}
_GPUS = {"sm_": "cuda", "gfx": "hip"}


def kind_of(target: str) -> str:
    """The key in `MACHINES` of a target: "cpu", "interpreter" or the name of a GPU ("sm_90", "gfx942")."""
    kind = target if target in ("cpu", "interpreter") else _GPUS.get(target.rstrip("0123456789abcdef"))
    if kind is None:
        raise ValueError(f'target must be "cpu", "interpreter" or a GPU such as "sm_90" or "gfx942"; got {target!r}')
    return kind


def in_stretches(geometry: ConvGeometry) -> bool:
    """Whether the gradient of a weight is summed stretch by stretch where there is a `STRETCH`."""
    return geometry.pointwise or geometry.Q >= _LONG
