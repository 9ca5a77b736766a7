"""A Triton target: `kernel[grid](...)` on CPU tensors, compiled to native code. Knows nothing of convolution.

Installed, Triton finds it through its entry point. From a source tree, `register()` says it is there.
"""

from __future__ import annotations


def register() -> None:
    """Make the target known to Triton in this process, as its entry point does where the package is installed."""
    from triton.backends import Backend, backends

    from .compiler import NAME, CPUBackend
    from .driver import CPUDriver

    backends.setdefault(NAME, Backend(CPUBackend, CPUDriver))
