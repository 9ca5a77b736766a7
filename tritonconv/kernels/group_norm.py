"""What group norm makes, between its passes over pixels, of what those leave for each channel of an image: values of
each group of GROUP channels, once for each channel, so that a pass reads them side by side."""

import triton
import triton.language as tl

from .moments import load_partials, merge


@triton.jit
def store_each(p_first, values, first, there, GROUP: tl.constexpr, TOGETHER: tl.constexpr):
    """values [BN] of groups, that are `there` [1, BN], to TOGETHER channels of each, the `first` one and those that
    follow."""
    row = first + tl.arange(0, TOGETHER)
    each = tl.broadcast_to(values[None, :], (TOGETHER, values.shape[0])).to(p_first.dtype.scalar.element_ty)
    tl.store(p_first[None, :] + row[:, None], each, mask=(row < GROUP)[:, None] & there)


@triton.jit
def group_finalize(
    partial_ptr, mean_ptr, var_ptr, N, parts,
    C: tl.constexpr, GROUP: tl.constexpr, TOGETHER: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Mean and (biased) variance [N, C] of GROUP channels, at each of these, from the partials [3, N·parts, C]: counts,
    means and M2s, of which TOGETHER of a group at a time.

    Grid: (N, tiles of C / GROUP).
    """
    n = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * BN + tl.arange(0, BN)
    there = (g < C // GROUP)[None, :]
    row = tl.arange(0, TOGETHER).to(tl.int64)  # of a group: its channels in one part, then those in the next
    p_image = partial_ptr + n * parts * C
    plane = tl.cast(N, tl.int64) * parts * C
    p_partial = p_image + (row // GROUP * C + row % GROUP)[:, None] + (g * GROUP)[None, :]
    count, mean, m2 = load_partials(p_partial, plane, (row < parts * GROUP)[:, None] & there)
    for _ in range(TOGETHER, parts * GROUP, TOGETHER):
        row += TOGETHER
        p_partial = p_image + (row // GROUP * C + row % GROUP)[:, None] + (g * GROUP)[None, :]
        count_b, mean_b, m2_b = load_partials(p_partial, plane, (row < parts * GROUP)[:, None] & there)
        count, mean, m2 = merge(count, mean, m2, count_b, mean_b, m2_b)
    count, mean, m2 = tl.reduce((count, mean, m2), 0, merge)
    var = m2 / tl.maximum(count, 1.0)
    at = n * C + g * GROUP
    for first in range(0, GROUP, TOGETHER):
        store_each(mean_ptr + at, mean, first, there, GROUP, TOGETHER)
        store_each(var_ptr + at, var, first, there, GROUP, TOGETHER)


@triton.jit
def group_means(
    sums_ptr, weight_ptr, means_ptr, M, N,
    C: tl.constexpr, GROUP: tl.constexpr, TOGETHER: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The means [2, N, C] of weight · da and weight · da · x̂ over M pixels of GROUP channels, at each of these, from
    the sums [N, 2, C] of da and da · x̂, of which TOGETHER of a group at a time; weight may be None.

    Grid: (N, tiles of C / GROUP).
    """
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * BN + tl.arange(0, BN)
    there = (g < C // GROUP)[None, :]
    da = tl.zeros((TOGETHER, BN), ACC)
    dax = tl.zeros((TOGETHER, BN), ACC)
    for first in range(0, GROUP, TOGETHER):
        row = first + tl.arange(0, TOGETHER)
        c = row[:, None] + (g * GROUP)[None, :]
        mask = (row < GROUP)[:, None] & there
        p_sums = sums_ptr + n * (2 * C) + c
        more_da = tl.load(p_sums, mask=mask, other=0.0)  # [TOGETHER, BN]
        more_dax = tl.load(p_sums + C, mask=mask, other=0.0)  # [TOGETHER, BN]
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + c, mask=mask, other=0.0).to(ACC)  # [TOGETHER, BN]
            more_da *= weight
            more_dax *= weight
        da += more_da
        dax += more_dax
    count = tl.cast(M, ACC) * GROUP
    p_means = means_ptr + n * C + g * GROUP
    plane = tl.cast(N, tl.int64) * C
    mean_da, mean_dax = tl.sum(da, 0) / count, tl.sum(dax, 0) / count
    for first in range(0, GROUP, TOGETHER):
        store_each(p_means, mean_da, first, there, GROUP, TOGETHER)
        store_each(p_means + plane, mean_dax, first, there, GROUP, TOGETHER)
