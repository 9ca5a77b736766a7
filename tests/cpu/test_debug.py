"""Debug mode: what reaches outside of a tensor is reported and not done; what does not is left alone."""

import pytest
import torch
import triton
import triton.language as tl

from benchmarks import programs
from tritonconv.cpu import engine
from tritonconv.engines import Launch


def line_of(kernel, text: str) -> str:
    """file:line of the first line of `kernel` that contains `text`."""
    number = next(i for i, line in enumerate(kernel.raw_src) if text in line)
    return f"test_debug.py:{kernel.starting_line_number + number}"


def walled(size: int, beyond: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A zero tensor of `size` floats whose storage ends there, and the memory that follows it."""
    memory = bytearray(4 * (size + beyond))
    whole = torch.frombuffer(memory, dtype=torch.float32)
    return torch.frombuffer(memory, dtype=torch.float32, count=size), whole[size:]


@triton.jit
def copy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n)
    tl.store(out + i, v, mask=i < n)


@pytest.mark.parametrize("block", [1, 4, 64])
def test_inside(block):
    x, out = torch.randn(100), torch.zeros(100)
    copy[(triton.cdiv(100, block),)](x, out, 100, block, debug=True)
    assert torch.equal(out, x)


@pytest.mark.parametrize("block", [1, 4, 64])
def test_load_beyond_the_end(block):
    x, out = torch.ones(100), torch.zeros(256)
    with pytest.raises(IndexError) as error:
        copy[(triton.cdiv(101, block),)](x, out, 101, block, debug=True)
    program = 100 // block
    assert str(error.value).startswith("copy: load of 4 bytes at byte 400 of x, whose memory is bytes [0, 400) (")
    assert str(error.value).endswith(f"{line_of(copy, 'v = ')}, program ({program}, 0, 0))")


@pytest.mark.parametrize("block", [1, 4, 64])
def test_store_beyond_the_end(block):
    out, beyond = walled(100)
    with pytest.raises(IndexError) as error:
        copy[(triton.cdiv(110, block),)](torch.ones(110), out, 110, block, debug=True)
    assert "copy: store of 4 bytes at byte 4" in str(error.value) and " of out," in str(error.value)
    assert line_of(copy, "tl.store") in str(error.value)
    assert out.eq(1).all() and beyond.eq(0).all()


def test_views_reach_over_their_storage():
    base = torch.arange(100.0)
    out = torch.zeros(100)
    copy[(1,)](base[40:], out, 60, 64, debug=True)
    assert torch.equal(out[:60], base[40:])
    with pytest.raises(IndexError, match=r"at byte 240 of x, whose memory is bytes \[-160, 240\)"):
        copy[(1,)](base[40:], out, 61, 64, debug=True)


def test_empty_tensor():
    copy[(1,)](torch.zeros(0), torch.zeros(0), 0, 64, debug=True)
    with pytest.raises(IndexError, match=r"at byte 0 of x, whose memory is bytes \[0, 0\)"):
        copy[(1,)](torch.zeros(0), torch.zeros(64), 1, 64, debug=True)


@triton.jit
def gather(x, index, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + tl.load(index + i)))


@pytest.mark.parametrize("wild", [-1, 50, -(2**40)])
def test_gathered_index(wild):
    index = torch.arange(32)
    gather[(1,)](torch.zeros(50), index, torch.zeros(32), 32, debug=True)
    index[17] = wild
    with pytest.raises(IndexError, match=rf"load of 4 bytes at byte {4 * wild} of x,"):
        gather[(1,)](torch.zeros(50), index, torch.zeros(32), 32, debug=True)


@triton.jit
def count(bins, x, BLOCK: tl.constexpr):
    tl.atomic_add(bins + tl.load(x + tl.arange(0, BLOCK)), 1.0)


def test_atomic():
    bins, beyond = walled(8)
    with pytest.raises(IndexError, match="atomic of 4 bytes at byte 36 of bins"):
        count[(1,)](bins, torch.tensor([1, 9, 3, 3]), 4, debug=True)
    assert bins.tolist() == [0, 1, 0, 2, 0, 0, 0, 0] and beyond.eq(0).all()


@triton.jit
def wanders(x, out, n, which, BLOCK: tl.constexpr):
    """Pointers that a loop carries and a branch chooses."""
    p, i = x, tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(n):
        total += tl.load(p + i)
        p += BLOCK
    q = out + BLOCK if which else out
    tl.store(q + i, total)


def test_pointers_are_followed_through_control_flow():
    x, out = torch.ones(96), torch.zeros(32)
    wanders[(1,)](x, out, 6, 1, 16, debug=True)
    assert out.tolist() == [0.0] * 16 + [6.0] * 16
    with pytest.raises(IndexError, match="at byte 384 of x"):
        wanders[(1,)](x, out, 7, 0, 16, debug=True)
    with pytest.raises(IndexError, match="at byte 64 of out"):
        wanders[(1,)](x, out[:16].clone(), 6, 1, 16, debug=True)


@triton.jit
def through_table(table, out, BLOCK: tl.constexpr):
    x = tl.load(table).to(tl.pointer_type(tl.float32))
    tl.store(out + tl.arange(0, BLOCK), tl.load(x + tl.arange(0, BLOCK)))


def test_a_pointer_from_memory_is_not_checked():
    x, out = torch.randn(16), torch.zeros(16)
    through_table[(1,)](torch.tensor([x.data_ptr()]), out, 16, debug=True)
    assert torch.equal(out, x)


@triton.jit
def all_masked_off(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i * 0, mask=i < n, other=3.0))


@pytest.mark.parametrize("debug", [True, False])
def test_nothing_is_read_under_an_empty_mask(debug):
    out = torch.zeros(64)
    all_masked_off[(1,)](torch.zeros(0), out, 0, 64, debug=debug)  # x is a null pointer
    assert out.eq(3).all()


@triton.jit
def product(a, b, more, out, M, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """a @ b + more: what is added is read under the mask that the product's rows have."""
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    rows = (m < M)[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        x = tl.load(a + m[:, None] * K + start + k[None, :], mask=rows, other=0.0)  # [BM, BK]
        y = tl.load(b + (start + k)[:, None] * BN + n[None, :])  # [BK, BN]
        acc = tl.dot(x, y, acc, input_precision="ieee")
    acc += tl.load(more + m[:, None] * BN + n[None, :], mask=rows)  # [BM, BN]
    tl.store(out + m[:, None] * BN + n[None, :], acc, mask=rows)


def test_product():
    a, b, more = torch.randn(11, 32), torch.randn(32, 16), torch.randn(11, 16)
    out = torch.zeros(11, 16)
    product[(1,)](a, b, more, out, 11, 32, 16, 16, 16, debug=True)
    torch.testing.assert_close(out, a @ b + more)
    for operands in ((a[:10].clone(), b, more), (a, b[:31].clone(), more), (a, b, more[:10].clone())):
        with pytest.raises(IndexError, match="product: load of 4 bytes"):
            product[(1,)](*operands, out, 11, 32, 16, 16, 16, debug=True)


@pytest.mark.parametrize("size", [1, 63, 1000])
def test_programs_are_clean(size):
    x, y, out = torch.randn(size), torch.randn(size), torch.zeros(size)
    programs.add[(triton.cdiv(size, 256),)](x, y, out, size, 256, debug=True)
    assert torch.equal(out, x + y)
    programs.softmax[(1,)](x, out, size, 1024, debug=True)
    torch.testing.assert_close(out, x.softmax(0))


@triton.jit
def positive(x, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.device_assert(tl.load(x + i, mask=i < n, other=1.0) > 0, "x must be positive")


def test_device_assert():
    x = torch.ones(100)
    positive[(2,)](x, 100, 64, debug=True)
    x[70] = -1
    with pytest.raises(AssertionError) as error:
        positive[(2,)](x, 100, 64, debug=True)
    assert str(error.value).startswith("positive: x must be positive (")
    assert str(error.value).endswith(f"{line_of(positive, 'device_assert')}, program (1, 0, 0))")
    positive[(2,)](x, 100, 64)


@triton.jit
def corner(out, N, LAST: tl.constexpr):
    at = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    tl.store(out + at, 1.0)


def test_program_of_a_3d_grid():
    with pytest.raises(IndexError, match=r"program \(2, 3, 4\)\)$"):
        corner[(3, 4, 5)](torch.zeros(59), 60, 0, debug=True)


def test_switches(monkeypatch):
    """Triton's own switch (TRITON_DEBUG) checks Triton's launches; TRITONCONV_DEBUG the library's."""
    x, out = torch.ones(10), torch.zeros(64)
    launch = Launch(copy, (1, 1, 1), (11,), {"BLOCK": 64}, 1, 1)
    engine.bind(launch)(x, out)
    with monkeypatch.context() as m:
        m.setenv("TRITONCONV_DEBUG", "1")
        checked = engine.bind(launch)
        with pytest.raises(IndexError, match="at byte 40 of x"):
            checked(x, out)
    with monkeypatch.context() as m:
        m.setattr(triton.knobs.runtime, "debug", True)
        with pytest.raises(IndexError, match="at byte 40 of x"):
            copy[(1,)](x, out, 11, 64)
