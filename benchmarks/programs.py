"""Triton programs that are not convolutions, for timing the CPU target: matrix product, softmax, layer norm,
elementwise."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_bk, stride_cm,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """c [M, N] = a [M, K] @ b [K, N], row-major. Grid: (tiles of M × tiles of N)."""
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    pid = tl.program_id(0)
    tile_m, tile_n = tl.swizzle2d(pid // tiles_n, pid % tiles_n, tiles_m, tiles_n, GROUP_M)
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    p_a = a_ptr + m[:, None] * stride_am + k[None, :]
    p_b = b_ptr + k[:, None] * stride_bk + n[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        a = tl.load(p_a, mask=(m < M)[:, None] & (k < K - start)[None, :], other=0.0)  # [BM, BK]
        b = tl.load(p_b, mask=(k < K - start)[:, None] & (n < N)[None, :], other=0.0)  # [BK, BN]
        acc = tl.dot(a, b, acc, input_precision="ieee")
        p_a += BK
        p_b += BK * stride_bk
    tl.store(c_ptr + m[:, None] * stride_cm + n[None, :], acc, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def softmax(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    """y[row] = softmax(x[row]) over N columns. Grid: (rows). BLOCK >= N."""
    row = tl.program_id(0).to(tl.int64) * N
    n = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row + n, mask=n < N, other=-float("inf"))  # [BLOCK]
    e = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + row + n, e / tl.sum(e, 0), mask=n < N, cache_modifier=".cs")


@triton.jit
def layer_norm(x_ptr, weight_ptr, bias_ptr, y_ptr, N, eps, BLOCK: tl.constexpr):
    """y[row] = (x[row] − mean) / √(var + eps) · weight + bias over N columns. Grid: (rows). BLOCK >= N."""
    row = tl.program_id(0).to(tl.int64) * N
    n = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row + n, mask=n < N, other=0.0)  # [BLOCK]
    mean = tl.sum(x, 0) / N
    centred = tl.where(n < N, x - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 0) / N + eps)
    weight = tl.load(weight_ptr + n, mask=n < N)  # [BLOCK]
    bias = tl.load(bias_ptr + n, mask=n < N)  # [BLOCK]
    tl.store(y_ptr + row + n, centred * scale * weight + bias, mask=n < N, cache_modifier=".cs")


@triton.jit
def add(x_ptr, y_ptr, z_ptr, size, BLOCK: tl.constexpr):
    """z = x + y. Grid: (tiles of `size`)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size)  # [BLOCK]
    y = tl.load(y_ptr + i, mask=i < size)  # [BLOCK]
    tl.store(z_ptr + i, x + y, mask=i < size, cache_modifier=".cs")


@triton.jit
def gelu(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """y = x · Φ(x), the exact GELU. Grid: (tiles of `size`)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size)  # [BLOCK]
    tl.store(y_ptr + i, x * 0.5 * (1 + tl.erf(x * 0.7071067811865476)), mask=i < size, cache_modifier=".cs")


@triton.jit
def fma_chains(y_ptr, steps, BLOCK: tl.constexpr):
    """8 · steps fused multiply-adds on each of BLOCK numbers that stay in registers. Grid: (programs)."""
    i = tl.arange(0, BLOCK)
    x = i.to(tl.float32)
    for _ in range(steps):
        for _ in tl.static_range(8):
            x = x * 0.999 + 0.001
    tl.store(y_ptr + tl.program_id(0) * BLOCK + i, x)


@triton.jit
def products(y_ptr, steps):
    """8 · steps integer products, each of which waits for the one before. Grid: (programs)."""
    x = tl.program_id(0) * 2 + 3
    for _ in range(steps):
        for _ in tl.static_range(8):
            x = x * x
    tl.store(y_ptr + tl.program_id(0), x)


@triton.jit
def read(x_ptr, y_ptr, steps, BLOCK: tl.constexpr):
    """y[program] = Σ x over the program's steps · BLOCK numbers, lane by lane. Grid: (programs)."""
    lane = tl.arange(0, BLOCK)
    p_x = x_ptr + tl.program_id(0).to(tl.int64) * steps * BLOCK + lane
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(steps):
        total += tl.load(p_x)  # [BLOCK]
        p_x += BLOCK
    tl.store(y_ptr + tl.program_id(0) * BLOCK + lane, total)


@triton.jit
def copy(x_ptr, y_ptr, BLOCK: tl.constexpr):
    """y = x, of BLOCK numbers a program. Grid: (programs)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i))  # [BLOCK]
