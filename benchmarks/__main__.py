"""`python -m benchmarks [NAME [option …]]`: all benchmarks, or the one named."""

import argparse
import importlib

NAMES = (
    *("cpu", "pool", "startup", "operators", "predictor", "tuning"),
    *("networks", "training", "memory", "coverage", "chart"),
)

parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description="Measures tritonconv on this machine, side by side with torch."
)
parser.add_argument("name", nargs="?", choices=NAMES, help="what to run (default: all)")
parser.add_argument("options", nargs=argparse.REMAINDER, help="its options; --help lists them")
arguments = parser.parse_args()
for name in (arguments.name,) if arguments.name else NAMES:
    importlib.import_module(f".{name}", __package__).main(arguments.options)
