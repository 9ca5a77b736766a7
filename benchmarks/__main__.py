"""`python -m benchmarks [NAME …]`: all benchmarks, or those named."""

import argparse
import importlib

NAMES = ("cpu", "pool", "startup", "operators")

parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description="Measures tritonconv on this machine, side by side with torch."
)
parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to run: {', '.join(NAMES)} (default: all)")
names = parser.parse_args().names
for name in names:
    if name not in NAMES:
        parser.error(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
for name in names or NAMES:
    importlib.import_module(f".{name}", __package__).main()
