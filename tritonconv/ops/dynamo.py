"""Imported where torch.compile first meets an opaque function: makes it put them, not their code, into its graphs.

Its next stage, which records operators and derivatives, runs them.
"""

import torch

from .library import OPAQUE

for function in OPAQUE:
    torch.compiler.allow_in_graph(function)
