"""Kernels for machines that are not here: compiled, read, packed, and loaded there."""
