"""The kernels. What several files share is in `common`, `activations`, `epilogue`, `moments`, `windows` and
`winograd_transforms`."""
