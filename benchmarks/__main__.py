"""`python -m benchmarks [NAME [option …]]`: all benchmarks, each in a process of its own, or the one named."""

import argparse
import importlib
import subprocess
import sys
import time

MEASURE = (
    *("cpu", "kernels", "networks", "training", "memory", "startup", "scaling"),
    *("tuning", "predictor", "operators", "coverage"),
)
WRITE = "pictures", "readme", "report"  # from what is stored

parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description="Measures tritonconv on this machine, side by side with torch."
)
names = (*MEASURE, *WRITE, "compare")
parser.add_argument("name", nargs="?", choices=names, help="what to run (default: all, but compare)")
parser.add_argument("options", nargs=argparse.REMAINDER, help="its options; --help lists them")
arguments = parser.parse_args()
if arguments.name:
    importlib.import_module(f".{arguments.name}", __package__).main(arguments.options)
else:
    failed = []
    for name in (*MEASURE, *WRITE):
        begin = time.monotonic()
        if subprocess.run([sys.executable, "-m", __package__, name]).returncode:
            failed.append(name)
        print(f"{name}: {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
