"""The arithmetics that are compiled for and measured in."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch


class Arithmetic(NamedTuple):
    """`precision`: of products of float32, as kernels call it."""

    name: str
    dtype: torch.dtype
    precision: str

    def choose(self) -> None:
        """Makes torch multiply float32 so on a GPU."""
        # Not by `fp32_precision`: what torch.compile asks for is these, and torch refuses to mix the two.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """In which a model of float32 computes so."""
        half = self.dtype in (torch.float16, torch.bfloat16)
        return torch.autocast(device.type, self.dtype) if half else contextlib.nullcontext()


FLOAT32 = Arithmetic("float32", torch.float32, "ieee")
EXACT = Arithmetic("float64", torch.float64, "ieee")
MEASURED = {
    "float16": Arithmetic("float16", torch.float16, "ieee"),
    "bfloat16": Arithmetic("bfloat16", torch.bfloat16, "ieee"),
    "TF32": Arithmetic("TF32", torch.float32, "tf32"),
    "float32": FLOAT32,
}
ARITHMETICS = (*MEASURED.values(), EXACT)
