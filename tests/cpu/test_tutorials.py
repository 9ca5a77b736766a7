"""The programs that Triton users start from: softmax, matrix product, dropout, layer norm, attention."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import DTYPES, check


@triton.jit
def softmax(x, out, rows, columns, stride, BLOCK: tl.constexpr):
    """Rows are shared out among the programs; a row is held whole."""
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0)):
        c = tl.arange(0, BLOCK)
        v = tl.load(x + row * stride + c, mask=c < columns, other=-float("inf"))
        e = tl.exp(v - tl.max(v, axis=0))
        tl.store(out + row * stride + c, e / tl.sum(e, axis=0), mask=c < columns)


@pytest.mark.parametrize("columns", [1, 17, 128, 200])
def test_softmax(columns):
    x = torch.randn(9, columns) * 4
    block = triton.next_power_of_2(columns)
    # two exponentials and two sums, each within some units
    _, out = check(softmax, (4,), x, torch.zeros_like(x), 9, columns, columns, block, ulp=16)
    torch.testing.assert_close(out, x.softmax(1))


@triton.jit
def relu(x):
    return tl.maximum(x, 0)


@triton.jit
def matmul(
    a, b, c, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_cm,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Programs in groups of GROUP rows of tiles, so that what they read is shared."""
    pid = tl.program_id(0)
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    group = pid // (GROUP * columns)
    first = group * GROUP
    size = min(rows - first, GROUP)
    m = first + (pid % (GROUP * columns)) % size
    n = (pid % (GROUP * columns)) // size
    tl.assume(m >= 0)
    i = (m * BM + tl.arange(0, BM)) % M
    j = (n * BN + tl.arange(0, BN)) % N
    k = tl.arange(0, BK)
    pa = a + i[:, None] * stride_am + k[None, :] * stride_ak
    pb = b + k[:, None] * stride_bk + j[None, :] * stride_bn
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, tl.cdiv(K, BK)):
        left = tl.load(pa, mask=k[None, :] < K - step * BK, other=0.0)
        right = tl.load(pb, mask=k[:, None] < K - step * BK, other=0.0)
        acc = tl.dot(left, right, acc)
        pa += BK * stride_ak
        pb += BK * stride_bk
    if ACTIVATION is not None:
        acc = ACTIVATION(acc)
    i = m * BM + tl.arange(0, BM)
    j = n * BN + tl.arange(0, BN)
    inside = (i[:, None] < M) & (j[None, :] < N)
    tl.store(c + stride_cm * i[:, None] + j[None, :], acc.to(c.dtype.element_ty), mask=inside)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("M,N,K,transposed", [(64, 48, 80, False), (37, 50, 19, True), (1, 1, 1, False)])
def test_matmul(M, N, K, transposed, dtype):
    """Small integers: every sum is exact, in every order."""
    g = torch.Generator().manual_seed(0)
    a = torch.randint(-3, 4, (M, K), generator=g).to(DTYPES[dtype])
    b = torch.randint(-3, 4, (N, K) if transposed else (K, N), generator=g).to(DTYPES[dtype])
    strides = (1, K) if transposed else (N, 1)
    grid = (triton.cdiv(M, 16) * triton.cdiv(N, 16),)
    sizes = (M, N, K, K, 1, *strides, N)
    c = torch.zeros(M, N, dtype=DTYPES[dtype])
    *_, out = check(matmul, grid, a, b, c, *sizes, 16, 16, 32, 2, relu)
    exact = a.double() @ (b.T if transposed else b).double()
    torch.testing.assert_close(out, exact.relu().to(out.dtype), rtol=0, atol=0)


def test_autotuned_matmul():
    configs = [triton.Config({"BM": 16, "BN": n, "BK": 16, "GROUP": 4}) for n in (16, 32)]
    tuned = triton.autotune(configs, key=["M", "N", "K"])(matmul)
    a, b, c = torch.randn(40, 64), torch.randn(64, 33), torch.zeros(40, 33)
    tuned[lambda meta: (triton.cdiv(40, meta["BM"]) * triton.cdiv(33, meta["BN"]),)](
        a, b, c, 40, 33, 64, 64, 1, 33, 1, 33, ACTIVATION=None
    )
    assert tuned.best_config in configs
    torch.testing.assert_close(c, a @ b)


@triton.jit
def dropout(x, out, n, p, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    keep = tl.rand(seed, i) > p
    tl.store(out + i, tl.where(keep, tl.load(x + i, m) / (1 - p), 0.0), m)


@pytest.mark.parametrize("seed", [0, 123456789, -5])
def test_dropout(seed):
    x = torch.randn(1000)
    _, out = check(dropout, (8,), x, torch.zeros_like(x), 1000, 0.5, seed, 128)
    assert 0.4 < (out != 0).float().mean() < 0.6


@triton.jit
def normal(out, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.randn(seed, i))


@triton.jit
def random_integers(out, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(seed, i)
    tl.store(out + i, a ^ b ^ c ^ d)


def test_random():
    # Box-Muller: near zero cos loses what its argument, up to 2 pi, was rounded by
    check(normal, (4,), torch.zeros(512), 7, 128, ulp=4, atol=4e-6)
    check(random_integers, (4,), torch.zeros(512, dtype=torch.int32), 7, 128)


@triton.jit
def layer_norm(x, out, w, b, mean_out, rstd_out, stride, N, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    x += row * stride
    out += row * stride
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, N, BLOCK):
        c = start + tl.arange(0, BLOCK)
        total += tl.load(x + c, mask=c < N, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / N
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, N, BLOCK):
        c = start + tl.arange(0, BLOCK)
        d = tl.where(c < N, tl.load(x + c, mask=c < N, other=0.0).to(tl.float32) - mean, 0.0)
        squares += d * d
    rstd = 1 / tl.sqrt(tl.sum(squares, axis=0) / N + eps)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)
    for start in range(0, N, BLOCK):
        c = start + tl.arange(0, BLOCK)
        m = c < N
        v = (tl.load(x + c, mask=m, other=0.0).to(tl.float32) - mean) * rstd
        tl.store(out + c, v * tl.load(w + c, mask=m) + tl.load(b + c, mask=m), mask=m)


@triton.jit
def layer_norm_backward(
    dx, dy, dw, db, x, w, mean, rstd, locks, stride, N, GROUPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Rows add up their share of dw and db in GROUPS partial sums, each under a lock; the first one finds it empty."""
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    m = c < N
    lock = locks + row % GROUPS
    dw += row % GROUPS * N + c
    db += row % GROUPS * N + c
    v = tl.load(x + row * stride + c, mask=m, other=0).to(tl.float32)
    g = tl.load(dy + row * stride + c, mask=m, other=0).to(tl.float32)
    r = tl.load(rstd + row)
    xhat = tl.where(m, (v - tl.load(mean + row)) * r, 0.0)
    wdy = tl.where(m, tl.load(w + c, mask=m).to(tl.float32) * g, 0.0)
    c1 = tl.sum(xhat * wdy, axis=0) / N
    c2 = tl.sum(wdy, axis=0) / N
    tl.store(dx + row * stride + c, (wdy - (xhat * c1 + c2)) * r, mask=m)
    partial_w = (g * xhat).to(w.dtype.element_ty)
    partial_b = g.to(w.dtype.element_ty)
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    count = tl.load(locks + GROUPS + row % GROUPS)
    if count == 0:
        tl.atomic_xchg(locks + GROUPS + row % GROUPS, 1)
    else:
        partial_w += tl.load(dw, mask=m)
        partial_b += tl.load(db, mask=m)
    tl.store(dw, partial_w, mask=m)
    tl.store(db, partial_b, mask=m)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@pytest.mark.parametrize("N", [100, 128])
def test_layer_norm(N):
    rows, groups, eps = 7, 3, 1e-5
    x, w, b, dy = (torch.randn(s, dtype=torch.float32) for s in ((rows, N), N, N, (rows, N)))
    stats = torch.zeros(rows), torch.zeros(rows)
    args = x, torch.zeros_like(x), w, b, *stats, N, N, eps
    tensors = check(layer_norm, (rows,), *args, 64, ulp=8, atol=2e-6)
    mean, rstd = tensors[4:]
    twins = [t.double().requires_grad_() for t in (x, w, b)]
    expected = torch.nn.functional.layer_norm(twins[0], (N,), twins[1], twins[2], eps)
    torch.testing.assert_close(tensors[1], expected.float())
    expected.backward(dy.double())
    partials = [torch.zeros(groups, N) for _ in range(2)]
    locks = torch.zeros(2 * groups, dtype=torch.int32)
    args = torch.zeros_like(x), dy, *partials, x, w, mean, rstd, locks, N, N
    dx, _, dw, db, *_ = check(layer_norm_backward, (rows,), *args, groups, 128, ulp=16, atol=1e-5)
    for got, twin in zip((dx, dw.sum(0), db.sum(0)), twins, strict=True):
        torch.testing.assert_close(got, twin.grad.float(), rtol=1e-5, atol=1e-5)


@triton.jit
def attention(q, k, v, out, T, scale, CAUSAL: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Flash attention: one pass over the keys, with a running maximum and sum per row."""
    start, head = tl.program_id(0) * BM, tl.program_id(1)
    q += head * T * D
    k += head * T * D
    v += head * T * D
    i, d = start + tl.arange(0, BM), tl.arange(0, D)
    rows = tl.load(q + i[:, None] * D + d[None, :], mask=i[:, None] < T, other=0.0)
    highest = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, D], tl.float32)
    end = tl.minimum(start + BM, T) if CAUSAL else T
    for first in range(0, end, BN):
        j = first + tl.arange(0, BN)
        keys = tl.load(k + j[None, :] * D + d[:, None], mask=j[None, :] < T, other=0.0)
        scores = tl.dot(rows, keys) * scale
        seen = j[None, :] < T
        if CAUSAL:
            seen = seen & (i[:, None] >= j[None, :])
        scores = tl.where(seen, scores, -1.0e30)
        peak = tl.maximum(highest, tl.max(scores, 1))
        p = tl.exp2((scores - peak[:, None]) * 1.4426950408889634)
        fade = tl.exp2((highest - peak) * 1.4426950408889634)
        total = total * fade + tl.sum(p, 1)
        values = tl.load(v + j[:, None] * D + d[None, :], mask=j[:, None] < T, other=0.0)
        acc = tl.dot(p.to(v.dtype.element_ty), values, acc * fade[:, None])
        highest = peak
    o = out + head * T * D + i[:, None] * D + d[None, :]
    tl.store(o, (acc / total[:, None]).to(out.dtype.element_ty), mask=i[:, None] < T)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal, dtype):
    H, T, D = 2, 50, 16
    q, k, v = (torch.randn(H, T, D).to(DTYPES[dtype]) for _ in range(3))
    tolerance = {"f32": 1e-6, "f16": 4e-3}[dtype]  # of values near 1: the rounding of p and of the result
    args = q, k, v, torch.zeros_like(q), T, D**-0.5, causal, D, 16, 32
    *_, out = check(attention, (triton.cdiv(T, 16), H), *args, ulp=8, atol=tolerance)
    expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2 * tolerance)
