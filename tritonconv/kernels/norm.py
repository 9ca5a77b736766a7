"""Batch norm, group norm, and PReLU by itself, over activations seen as matrices of M pixels × C channels.

`pixels` says how memory is seen so. Sums are taken in a fixed order: the same input gives the same bits.
"""

import triton
import triton.language as tl

from .activations import activate, derivative, derivative_at, slopes
from .common import accumulator
from .moments import load_partials, merge, moments, store_partial
from .pixels import place, statistic_of, tiles_of


@triton.jit
def moments_of(
    x_ptr, tile, M, C: tl.constexpr, PLANAR: tl.constexpr, EACH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """Count, mean and M2 [BN] of one tile of x."""
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    m, c, at = place(tile, M, C, PLANAR, BM, BN, EACH)
    mask = (m < M)[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
    return moments(x, m < M, tl.minimum(M - tile % tl.cdiv(M, BM) * BM, BM))


@triton.jit
def norm_moments(
    x_ptr, partial_ptr, M, N,
    C: tl.constexpr, PLANAR: tl.constexpr, EACH: tl.constexpr, TILES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Partials [3, parts, C] of x, one for each TILES tiles of BM rows, image by image. Grid: (parts, tiles of C)."""
    first, end, _ = tiles_of(M, N, TILES, BM, EACH)
    count, mean, m2 = moments_of(x_ptr, first, M, C, PLANAR, EACH, BM, BN)
    if TILES > 1:
        for tile in range(first + 1, end):
            count_b, mean_b, m2_b = moments_of(x_ptr, tile, M, C, PLANAR, EACH, BM, BN)
            count, mean, m2 = merge(count, mean, m2, count_b, mean_b, m2_b)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    store_partial(partial_ptr, tl.program_id(0), tl.num_programs(0), count, mean, m2, c, c < C, C)


@triton.jit
def norm_finalize(
    partial_ptr, mean_ptr, var_ptr, M, tiles, C: tl.constexpr, TOGETHER: tl.constexpr, BN: tl.constexpr
):
    """Mean and (biased) variance [C] of M rows from the partials [3, tiles, C]: counts, means and M2s, of TOGETHER
    tiles at a time.

    Grid: (tiles of C).
    """
    c = tl.program_id(0) * BN + tl.arange(0, BN)
    tile = tl.arange(0, TOGETHER)
    p_partial = partial_ptr + tile[:, None] * C + c[None, :]
    plane = tl.cast(tiles, tl.int64) * C
    m_column = (c < C)[None, :]
    count, mean, m2 = load_partials(p_partial, plane, (tile < tiles)[:, None] & m_column)
    for first in range(TOGETHER, tiles, TOGETHER):
        p_partial += TOGETHER * C
        count_b, mean_b, m2_b = load_partials(p_partial, plane, (tile < tiles - first)[:, None] & m_column)
        count, mean, m2 = merge(count, mean, m2, count_b, mean_b, m2_b)
    count, mean, m2 = tl.reduce((count, mean, m2), 0, merge)
    tl.store(mean_ptr + c, mean.to(mean_ptr.dtype.element_ty), mask=c < C)
    tl.store(var_ptr + c, (m2 / M).to(var_ptr.dtype.element_ty), mask=c < C)


@triton.jit
def statistics(mean_ptr, var_ptr, at, mask, EPS: tl.constexpr, ACC: tl.constexpr):
    """mean and 1 / √(var + EPS) from where they are at, [BN]."""
    mean = tl.load(mean_ptr + at, mask=mask, other=0.0).to(ACC)  # [BN]
    var = tl.load(var_ptr + at, mask=mask, other=1.0).to(ACC)  # [BN]
    return mean, 1 / tl.sqrt(var + EPS)


@triton.jit
def normalized(x, mean_ptr, var_ptr, at, mask, EPS: tl.constexpr):
    """(x − mean) / √(var + EPS), and 1 / √(var + EPS), of x [BM, BN] by statistics from where they are at, [BN]."""
    mean, rstd = statistics(mean_ptr, var_ptr, at, mask, EPS, x.dtype)
    return (x - mean[None, :]) * rstd[None, :], rstd


@triton.jit
def scale_and_shift(
    mean_ptr, var_ptr, weight_ptr, bias_ptr, first, c, C: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr
):
    """scale, shift [BN]: x · scale + shift = (x − mean) / √(var + EPS) · weight + bias in channels first + c, c < C."""
    mean, scale = statistics(mean_ptr + first, var_ptr + first, c, c < C, EPS, ACC)
    if weight_ptr is not None:
        scale *= tl.load(weight_ptr + first + c, mask=c < C, other=0.0).to(ACC)  # [BN]
    shift = -mean * scale
    if bias_ptr is not None:
        shift += tl.load(bias_ptr + first + c, mask=c < C, other=0.0).to(ACC)  # [BN]
    return scale, shift


@triton.jit
def affine(x, weight_ptr, bias_ptr, first, c, C: tl.constexpr):
    """x · weight + bias in channels first + c [BN], c < C; None stands for 1 and 0."""
    if weight_ptr is not None:
        x *= tl.load(weight_ptr + first + c, mask=c < C, other=0.0).to(x.dtype)[None, :]  # [BN]
    if bias_ptr is not None:
        x += tl.load(bias_ptr + first + c, mask=c < C, other=0.0).to(x.dtype)[None, :]  # [BN]
    return x


@triton.jit
def behind(
    dy_ptr, y_ptr, x, weight_ptr, bias_ptr, residual_ptr, c, at, mask,
    C: tl.constexpr, ACTIVATION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What the activation makes of dy on the way back, [BM, BN]: y is its result, and where that is None, its argument
    is computed again from the normalized x [BM, BN]."""
    da = tl.load(dy_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
    if ACTIVATION is not None:
        if y_ptr is None:
            a = affine(x, weight_ptr, bias_ptr, 0, c, C)
            if residual_ptr is not None:
                a += tl.load(residual_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
            da = derivative_at(da, a, ACTIVATION)
        else:
            da = derivative(da, tl.load(y_ptr + at, mask=mask, other=0.0).to(ACC), ACTIVATION)  # [BM, BN]
    return da


@triton.jit
def norm_apply(
    x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, slope_ptr, residual_ptr, y_ptr, M, N,
    C: tl.constexpr, PLANAR: tl.constexpr, EACH: tl.constexpr, PIXEL: tl.constexpr, EPS: tl.constexpr,
    ACTIVATION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y = activation((x − mean) / √(var + EPS) · weight + bias + residual); without the norm where `mean_ptr` is None.

    Pixels of x are PIXEL elements apart, unless it is PLANAR or of EACH.
    Grid: (N·tiles of M, tiles of C).
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    m, c, at = place(tl.program_id(0), M, C, PLANAR, BM, BN, EACH)
    mask = (m < M)[:, None] & (c < C)[None, :]
    o_x = at if PLANAR or EACH or PIXEL == C else m[:, None] * PIXEL + c[None, :]
    x = tl.load(x_ptr + o_x, mask=mask, other=0.0).to(ACC)  # [BM, BN]
    if mean_ptr is not None:
        statistic = statistic_of(tl.program_id(0), M, c, C, EACH, BM)
        x, _ = normalized(x, mean_ptr, var_ptr, statistic, c < C, EPS)
        x = affine(x, weight_ptr, bias_ptr, 0, c, C)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
    x = activate(x, ACTIVATION, slope_ptr, c[None, :], (c < C)[None, :])
    tl.store(y_ptr + at, x.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_pairs(a, b, more_a, more_b):
    return a + more_a, b + more_b


@triton.jit
def products(
    dy_ptr, y_ptr, x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, residual_ptr, tile, M,
    C: tl.constexpr, PLANAR: tl.constexpr, EACH: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """da and da · x̂ [BM, BN] of one tile: da is dy behind the activation, x̂ the normalized x."""
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    m, c, at = place(tile, M, C, PLANAR, BM, BN, EACH)
    mask = (m < M)[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
    x, _ = normalized(x, mean_ptr, var_ptr, statistic_of(tile, M, c, C, EACH, BM), c < C, EPS)
    da = behind(dy_ptr, y_ptr, x, weight_ptr, bias_ptr, residual_ptr, c, at, mask, C, ACTIVATION, ACC)
    return da, tl.where(mask, da * x, 0.0)


@triton.jit
def norm_backward_sums(
    dy_ptr, y_ptr, x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, residual_ptr, partial_ptr, M, N,
    C: tl.constexpr, PLANAR: tl.constexpr, EACH: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    TILES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Partials [parts, 2, C] of Σ da and Σ da · x̂ (see `products`), one for each TILES tiles of BM rows; of EACH
    image by itself [parts of an image, N, 2, C].

    Grid: (parts, tiles of C).
    """
    first, end, row = tiles_of(M, N, TILES, BM, EACH)
    da, dax = products(
        dy_ptr, y_ptr, x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, residual_ptr,
        first, M, C, PLANAR, EACH, EPS, ACTIVATION, BM, BN,
    )  # fmt: skip
    if TILES > 1:
        for tile in range(first + 1, end):
            more_da, more_dax = products(
                dy_ptr, y_ptr, x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, residual_ptr,
                tile, M, C, PLANAR, EACH, EPS, ACTIVATION, BM, BN,
            )  # fmt: skip
            da += more_da
            dax += more_dax
    sum_da, sum_dax = tl.reduce((da, dax), 0, add_pairs)
    c = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    p_partial = partial_ptr + row.to(tl.int64) * (2 * C) + c
    tl.store(p_partial, sum_da, mask=c < C)
    tl.store(p_partial + C, sum_dax, mask=c < C)


@triton.jit
def norm_backward(
    dy_ptr, y_ptr, x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, residual_ptr, sums_ptr, dx_ptr, da_ptr, M, N,
    C: tl.constexpr, PLANAR: tl.constexpr, EACH: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx = weight / √(var + EPS) · (da − Σda / (N·M) − x̂ · Σ(da · x̂) / (N·M)), and da itself, unless `da_ptr` is None.

    `sums_ptr`: [2, C], those of `norm_backward_sums`; None where the statistics are constants: then dx lacks both.
    Of EACH image by itself it is [2, N, C], the means in their stead of weight · da and weight · da · x̂.
    Grid: (N·tiles of M, tiles of C).
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    m, c, at = place(tl.program_id(0), M, C, PLANAR, BM, BN, EACH)
    mask = (m < M)[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
    statistic = statistic_of(tl.program_id(0), M, c, C, EACH, BM)
    x, rstd = normalized(x, mean_ptr, var_ptr, statistic, c < C, EPS)
    da = behind(dy_ptr, y_ptr, x, weight_ptr, bias_ptr, residual_ptr, c, at, mask, C, ACTIVATION, ACC)
    dx = da
    if EACH:
        dx = affine(dx, weight_ptr, None, 0, c, C)
        p_means = sums_ptr + statistic
        mean_da = tl.load(p_means, mask=c < C, other=0.0).to(ACC)  # [BN]
        mean_dax = tl.load(p_means + tl.cast(N, tl.int64) * C, mask=c < C, other=0.0).to(ACC)  # [BN]
        dx = (dx - mean_da[None, :] - x * mean_dax[None, :]) * rstd[None, :]
    elif sums_ptr is not None:
        mean_da = tl.load(sums_ptr + c, mask=c < C, other=0.0).to(ACC) / (M * N)  # [BN]
        mean_dax = tl.load(sums_ptr + C + c, mask=c < C, other=0.0).to(ACC) / (M * N)  # [BN]
        dx -= mean_da[None, :] + x * mean_dax[None, :]
    if not EACH:
        dx = affine(dx * rstd[None, :], weight_ptr, None, 0, c, C)
    if da_ptr is not None:
        tl.store(da_ptr + at, da.to(da_ptr.dtype.element_ty), mask=mask)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def prelu_backward(
    dy_ptr, x_ptr, slope_ptr, dx_ptr, partial_ptr, M, N,
    C: tl.constexpr, PLANAR: tl.constexpr, ACTIVATION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx = dy where x > 0, else slope · dy; and partials [N·tiles of M, C] of the slopes' gradients, Σ x · dy where not
    x > 0, unless `partial_ptr` is None.

    Grid: (N·tiles of M, tiles of C).
    """
    ACC: tl.constexpr = accumulator(x_ptr.dtype.element_ty)
    m, c, at = place(tl.program_id(0), M, C, PLANAR, BM, BN)
    mask = (m < M)[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
    dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(ACC)  # [BM, BN]
    slope = slopes(slope_ptr, c[None, :], (c < C)[None, :], ACTIVATION).to(ACC)  # [1, BN]
    tl.store(dx_ptr + at, tl.where(x > 0, dy, dy * slope).to(dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        p_partial = partial_ptr + tl.program_id(0).to(tl.int64) * C + c
        tl.store(p_partial, tl.sum(tl.where(x > 0, 0.0, x * dy), 0), mask=c < C)
