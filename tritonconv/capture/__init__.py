"""Finds what of a model can be run by kernels, and changes nothing."""
