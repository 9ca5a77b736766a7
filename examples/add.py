"""A Triton kernel on tensors of a CPU, where no GPU is active: `python examples/add.py`.

docs/cpu-target.md follows it down to machine code.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def add(x_ptr, y_ptr, z_ptr, size, BLOCK: tl.constexpr):
    """z = x + y. Grid: (tiles of `size`)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size)  # [BLOCK]
    y = tl.load(y_ptr + i, mask=i < size)  # [BLOCK]
    tl.store(z_ptr + i, x + y, mask=i < size)


if __name__ == "__main__":
    x, y = torch.randn(2, 1_000_000)
    z = torch.empty_like(x)
    add[(triton.cdiv(len(x), 1024),)](x, y, z, len(x), BLOCK=1024)
    print(f"the largest difference from torch's sum: {(z - (x + y)).abs().max():g}")
