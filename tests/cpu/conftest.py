"""Kernels launched in these tests run on the native CPU target."""

import pytest
import torch

import tritonconv.cpu

tritonconv.cpu.register()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
