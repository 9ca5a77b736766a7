"""`python -m benchmarks [NAME [option …]]`: the benchmark named, or all, each in a process of its own.

`python -m benchmarks NAME,NAME` runs some of them so. What is stored is then written into pictures and documents.
"""

import argparse
import importlib
import subprocess
import sys
import time

MEASURE = (
    *("cpu", "kernels", "networks", "training", "memory", "startup", "scaling"),
    *("tuning", "predictor", "operators", "coverage", "compile"),
)
WRITE = "pictures", "readme", "report"  # from what is stored

parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description="Measures tritonconv on this machine, side by side with torch."
)
NAMES = *MEASURE, *WRITE, "compare", "ship"
text = f"what to run, of {', '.join(NAMES)}; several with commas between them (default: all, but compare and ship)"
parser.add_argument("names", metavar="NAME", nargs="?", help=text)
parser.add_argument("options", nargs=argparse.REMAINDER, help="of one benchmark; --help lists them")
arguments = parser.parse_args()
asked = arguments.names.split(",") if arguments.names else MEASURE
for name in asked:
    if name not in NAMES:
        parser.error(f"no {name!r}; there are {', '.join(NAMES)}")
if len(asked) == 1:
    importlib.import_module(f".{asked[0]}", __package__).main(arguments.options)
else:
    failed = []
    for name in (*asked, *WRITE):
        begin = time.monotonic()
        if subprocess.run([sys.executable, "-m", __package__, name]).returncode:
            failed.append(name)
        print(f"{name}: {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
