"""Zeros around images."""

import triton
import triton.language as tl


@triton.jit
def pad_pixels(
    x_ptr, y_ptr, H, W, HEIGHT, WIDTH, C: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, BLOCK: tl.constexpr
):
    """y [N, HEIGHT, WIDTH, C]: x [N, H, W, C] from pixel (TOP, LEFT) on, zeros around it. Grid: (N·HEIGHT)."""
    n = tl.program_id(0) // HEIGHT
    h = tl.program_id(0) % HEIGHT - TOP
    p_x = x_ptr + ((n * H + h).to(tl.int64) * W - LEFT) * C
    p_y = y_ptr + tl.program_id(0).to(tl.int64) * WIDTH * C
    first = tl.where((h >= 0) & (h < H), LEFT * C, WIDTH * C)
    last = (LEFT + W) * C
    for start in range(0, WIDTH * C, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(p_x + i, mask=(i >= first) & (i < last), other=0.0)  # [BLOCK]
        tl.store(p_y + i, x, mask=i < WIDTH * C)
