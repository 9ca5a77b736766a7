"""Weights into the panels that matrix products read."""

import triton
import triton.language as tl

from .common import to_tf32


@triton.jit
def pack(
    w_ptr, panels_ptr, rows, columns, stride_group, stride_tap, stride_row, stride_column,
    ROWS_BESIDE: tl.constexpr, COLUMNS_BESIDE: tl.constexpr, TURNED: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """panels [groups, tiles of columns, taps, rows, BN] of a weight with these strides; zero beyond the last column. If
    TURNED they are [groups, tiles of columns, BN, taps, rows], for TF32, and rounded to it.

    They are written past the caches: of a CPU, all cores read them, and what others have read is slow to be written.
    Sizes are no constexprs: one kernel serves all weights whose rows, or columns, lie beside each other, or neither do.
    Grid: (taps × tiles of rows, tiles of columns, groups).
    """
    blocks = tl.cdiv(rows, BK)
    tap = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * BK + tl.arange(0, BK)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    group = tl.program_id(2).to(tl.int64)
    o_row = row if ROWS_BESIDE else row * stride_row
    o_column = column if COLUMNS_BESIDE else column * stride_column
    p_w = w_ptr + group * stride_group + tap * stride_tap
    m_row = (row < rows)[:, None]
    mask = m_row & (column < columns)[None, :]
    w = tl.load(p_w + o_row[:, None] + o_column[None, :], mask=mask, other=0.0)  # [BK, BN]
    taps = tl.num_programs(0) // blocks
    tile = group * tl.num_programs(1) + tl.program_id(1)
    n = tl.arange(0, BN)
    if TURNED:
        o_panel = (tile * BN + n[None, :]) * taps * rows + tap * rows + row[:, None]
        tl.store(panels_ptr + o_panel, to_tf32(w), mask=m_row)
    else:
        p_panel = panels_ptr + (tile * taps + tap) * rows * BN
        tl.store(p_panel + row[:, None] * BN + n[None, :], w, mask=m_row, cache_modifier=".cs")
