"""Kernels launched in these tests run on the native CPU target."""

import tritonconv.cpu

tritonconv.cpu.register()
