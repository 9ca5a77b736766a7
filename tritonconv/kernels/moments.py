"""Statistics by parts: of each group of pixels, per channel, the count, the mean and the sum of squared deviations from
that mean ("M2"). Merging these loses nothing to cancellation, as Σx² − (Σx)² / M would (Chan, Golub and LeVeque 1983).
"""

import triton
import triton.language as tl


@triton.jit
def merge(count, mean, m2, count_b, mean_b, m2_b):
    """Count, mean and M2 of two sets of values together. Of an empty set all three are 0."""
    total = count + count_b
    delta = mean_b - mean
    share = count_b / tl.maximum(total, 1.0)
    return total, mean + delta * share, m2 + m2_b + delta * delta * (count * share)


@triton.jit
def store_partial(partial_ptr, tile, tiles, count, mean, m2, n, m_n, C: tl.constexpr):
    """One tile's count, mean and M2 to the channels n where m_n of `partial_ptr` [3, tiles, C]."""
    p_partial = partial_ptr + tl.cast(tile, tl.int64) * C + n
    plane = tl.cast(tiles, tl.int64) * C
    tl.store(p_partial, count, mask=m_n)
    tl.store(p_partial + plane, mean, mask=m_n)
    tl.store(p_partial + 2 * plane, m2, mask=m_n)


@triton.jit
def load_partials(p_partial, plane, mask):
    """Counts, means and M2s [tiles, BN], in float64, from where each lies a plane after the other."""
    count = tl.load(p_partial, mask=mask, other=0.0).to(tl.float64)  # [tiles, BN]
    mean = tl.load(p_partial + plane, mask=mask, other=0.0).to(tl.float64)  # [tiles, BN]
    m2 = tl.load(p_partial + 2 * plane, mask=mask, other=0.0).to(tl.float64)  # [tiles, BN]
    return count, mean, m2


@triton.jit
def moments(values, there, count, AXIS: tl.constexpr = 1):
    """Count, mean and M2 of each channel of values [BM, BN], of the `count` pixels that are `there`. Channels lie along
    AXIS, pixels along the other one."""
    mask = tl.expand_dims(there, AXIS)
    mean = tl.sum(tl.where(mask, values, 0.0), 1 - AXIS) / count
    deviation = tl.where(mask, values - tl.expand_dims(mean, 1 - AXIS), 0.0)
    return tl.zeros_like(mean) + count, mean, tl.sum(deviation * deviation, 1 - AXIS)


@triton.jit
def store_moments(
    partial_ptr, tile, tiles, values, there, count, n, m_n, C: tl.constexpr, AXIS: tl.constexpr = 1
):  # fmt: skip
    """The partial of one tile, of `moments`, to channels n where m_n."""
    counts, mean, m2 = moments(values, there, count, AXIS)
    store_partial(partial_ptr, tile, tiles, counts, mean, m2, n, m_n, C)
