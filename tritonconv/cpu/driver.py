"""Triton's view of the CPU as a device. Loaded by Triton through its entry points, while Triton itself is being
imported: this module and `compiler` therefore import nothing heavy, and neither torch nor Triton's own front end,
before they are used.

Triton wants exactly one concrete driver class in this module.
"""

from __future__ import annotations

import os
from functools import cached_property

from triton.backends import driver as triton_driver

from .compiler import NAME, cpu_target


class CPUDriver(triton_driver.DriverBase):
    @cached_property
    def utils(self):
        from .launcher import Utils

        return Utils

    @cached_property
    def launcher_cls(self):
        from .launcher import Launcher

        return Launcher

    @staticmethod
    def is_active() -> bool:
        """A GPU's driver comes first. TRITON_DEFAULT_BACKEND, or `triton.runtime.driver.set_active(CPUDriver())`,
        chooses this one beside a GPU."""
        import torch

        return os.environ.get("TRITON_DEFAULT_BACKEND") == NAME or not (
            torch.cuda.is_available() or torch.xpu.is_available()
        )

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self):
        return cpu_target()

    def get_current_device(self):
        return "cpu"  # Triton keys its kernel caches on this alone: it must differ from every GPU's number

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        import torch

        return torch.device("cpu")

    def get_device_interface(self):
        from .launcher import Interface

        return Interface

    def get_empty_cache_for_benchmark(self):
        import torch

        return torch.empty(64 << 20, dtype=torch.uint8)  # beyond the last-level caches

    def clear_cache(self, cache):
        cache.zero_()

    def get_benchmarker(self):
        from triton.testing import do_bench

        return do_bench
