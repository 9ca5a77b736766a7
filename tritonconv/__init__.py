"""A compiler of convolution blocks: `tritonconv.patch(model)` runs a PyTorch CNN on fused Triton kernels."""
