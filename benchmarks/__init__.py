"""Benchmarks: `python -m benchmarks NAME`. Each compares in one run, interleaved, and stores what it measured."""
