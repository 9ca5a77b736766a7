"""What a group norm takes between the launches of `norm`: the statistics, and the means of gradients, of each group."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from ..configs.tile import MACHINES, kind_of
from ..engines import Launch
from ..geometry import GroupGeometry
from ..kernels import group_norm
from .common import prepare
from .norm import empty_statistics


def _launch(kernel, target: str, geometry: GroupGeometry, rows: int, sizes: tuple[int, ...]) -> Launch:
    """One that makes values of each group out of so many rows."""
    together = min(MACHINES[kind_of(target)].together, next_power_of_2(rows))
    block = min(max(16, 64 // together), next_power_of_2(geometry.groups))
    constexprs = {"C": geometry.C, "GROUP": geometry.group, "TOGETHER": together, "BN": block}
    return Launch(kernel, (geometry.N, cdiv(geometry.groups, block), 1), sizes, constexprs, 4, 1)


def finalize_launch(target: str, geometry: GroupGeometry, parts: int) -> Launch:
    """Tensors: partial [3, N·parts, C], mean [N, C], var [N, C]."""
    sizes = geometry.N, parts
    return _launch(group_norm.group_finalize, target, geometry, parts * geometry.group, sizes)


def means_launch(target: str, geometry: GroupGeometry) -> Launch:
    """Tensors: sums [N, 2, C], weight or None, means [2, N, C]."""
    sizes = geometry.M, geometry.N
    return _launch(group_norm.group_means, target, geometry, geometry.group, sizes)


def finalize(moments: Tensor, N: int, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [N, groups, C / groups] from partial statistics [3, N·parts, C]."""
    _, tiles, C = moments.shape
    geometry = GroupGeometry(1, C, N, groups=groups)  # of any number of pixels: the partials count them
    _, run = prepare(moments.device, finalize_launch, geometry, tiles // N)
    mean, var = empty_statistics(moments, N, groups, C // groups)
    run(moments, mean, var)
    return mean, var


def means(sums: Tensor, weight: Tensor | None, M: int, groups: int) -> Tensor:
    """What `norm.backward` takes, [2, N, C], of M pixels in each image whose gradients `norm.backward_sums` found to be
    `sums`, [N, 2, C]."""
    N, _, C = sums.shape
    _, run = prepare(sums.device, means_launch, GroupGeometry(M, C, N, groups=groups))
    means = torch.empty((2, N, C), dtype=sums.dtype, device=sums.device)
    run(sums, None if weight is None else weight.contiguous(), means)
    return means
