"""A compiler of convolution blocks: `tritonconv.patch(model)` runs a PyTorch CNN on fused Triton kernels."""

from .patch import patch, patched, report, unpatch

__all__ = ["patch", "patched", "report", "unpatch"]
