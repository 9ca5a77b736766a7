"""The command line: `tritonconv COMMAND …`, or `python -m tritonconv COMMAND …`."""

from __future__ import annotations

import argparse
import copy
import errno
import importlib.util
import inspect
import json
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import llvmlite
import torch
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import autotune.store
import tritonconv

from . import engines
from .cpu import cache
from .cpu.target import host
from .patching.reporting import Printable
from .sample import call, inference
from .targets.compiling import compile_package
from .targets.machine_code import TARGETS
from .targets.package import REPORT, Package
from .timing import turns

SECONDS = 3.0  # that `bench` measures
DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


@dataclass(frozen=True)
class Facts(Printable):
    """Named values. Prints as a table."""

    title: str
    values: dict[str, object]

    def __rich__(self) -> Table:
        table = Table(title=f"tritonconv: {self.title}", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self.values.items():
            table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
        return table

    def to_json(self) -> str:
        return json.dumps(self.values, indent=2)


def report(model: nn.Module, sample: tuple[Tensor, ...]) -> Printable:
    """Patches a model, compares it on random input, and shows what became of each site."""
    return tritonconv.report(tritonconv.patch(model, sample))


def bench(model: nn.Module, sample: tuple[Tensor, ...]) -> Printable:
    """Times the inference of a model, original and patched, in turns for some seconds."""
    ours = tritonconv.patch(copy.deepcopy(model), sample)
    with inference(model), inference(ours):
        runs = (lambda: call(model, sample)), (lambda: call(ours, sample))
        theirs, patched = map(statistics.median, turns(runs, SECONDS, device=sample[0].device))
    times = {"torch_ms": 1e3 * theirs, "tritonconv_ms": 1e3 * patched, "torch_divided_by_tritonconv": theirs / patched}
    return Facts(f"{type(model).__name__}, medians", times | {"threads": torch.get_num_threads()})


def env() -> Printable:
    """Shows versions, engines, the processor, and where caches are."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
    return Facts(
        "environment",
        versions
        | {
            "llvmlite": llvmlite.__version__,
            "engines": " ".join(engines.available()),
            "gpus": ", ".join(gpus) or "none",
            "processor": host().cpu,
            "vector_bits": 8 * host().vector_bytes,
            "features": " ".join(f[1:] for f in host().features.split(",") if f.startswith("+")),
            "threads": torch.get_num_threads(),
            "kernels": str(cache.folder()),
            "tuned": str(autotune.store.directory()),
        },
    )


def plan(model: nn.Module, sample: tuple[Tensor, ...]) -> Printable:
    """Shows what patching would make of a model: kernels, tiles, what bounds them, or why torch runs a site."""
    return tritonconv.plan(model, sample)


def summary(model: nn.Module, sample: tuple[Tensor, ...]) -> Printable:
    """Shows a model layer by layer: shapes, parameters, receptive field, work, and what runs it."""
    return tritonconv.summary(model, sample)


def tune(model: nn.Module, sample: tuple[Tensor, ...], *, budget: float | None, training: bool) -> Printable:
    """Measures which tiles and algorithms are fastest here, and stores them; goes on where it was interrupted."""
    return tritonconv.tune(tritonconv.patch(model).train(training), sample, budget=budget, console=Console(stderr=True))


def compile(model: nn.Module, sample: tuple[Tensor, ...], *, target: str, out: Path, training: bool) -> Printable:
    """Compiles all kernels that a model needs, for a machine that need not be here, into a package."""
    made = compile_package(model.train(training), sample, target, out)
    return _package("compiled", made)


def load(folder: Path) -> Printable:
    """Loads a package that `compile` made, so that its kernels need no compiling here."""
    return _package("loaded", tritonconv.load_package(folder))


def _package(what: str, package: Package) -> Facts:
    facts = {"target": package.target, "kernels": len(package.kernels), "configs": package.configs}
    return Facts(f"package {what}", facts | {"report": str(package.folder / REPORT)})


# Commands on a model and a sample, and those on none; their first line is their help.
ON_MODEL = (plan, summary, report, bench, tune, compile)
OTHERS = (env, load)
_TRAINING = {"action": "store_true", "help": "forward and backward, in training mode (default: inference)"}
OPTIONS = {
    tune: {
        "--budget": {"type": float, "metavar": "SECONDS", "help": "what is not reached in time stays untuned"},
        "--training": _TRAINING,
    },
    compile: {
        "--target": {"required": True, "help": f"{', '.join(('cpu', *TARGETS))}; cpu means machines like this one"},
        "--out": {"type": Path, "required": True, "metavar": "DIR", "help": "where to write the package"},
        "--training": _TRAINING,
    },
    load: {"folder": {"type": Path, "metavar": "DIR", "help": "the package"}},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, or 1 if it failed; bad use exits with 2."""
    chosen = _parser().parse_args(arguments)
    command = f"tritonconv {chosen.run.__name__}"
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"{command}: {message}", file=sys.stderr)
        return _run(chosen, command)


def _run(chosen: argparse.Namespace, command: str) -> int:
    given = {name.lstrip("-"): getattr(chosen, name.lstrip("-")) for name in OPTIONS.get(chosen.run, ())}
    try:
        result = chosen.run(*(_model_and_sample(chosen) if chosen.run in ON_MODEL else ()), **given)
    except KeyboardInterrupt:
        print(f"{command}: interrupted; what was measured until now is stored", file=sys.stderr)
        return 130
    except Exception as error:  # a user's model may raise anything
        print(f"{command}: {_sentence(error)}", file=sys.stderr)
        return 1
    if chosen.json:
        print(result.to_json())
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tritonconv", description=tritonconv.__doc__.partition("\n")[0])
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for run in (*ON_MODEL, *OTHERS):
        text = run.__doc__.partition("\n")[0]
        command = commands.add_parser(run.__name__, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")
        if run in ON_MODEL:
            where = "a module, or a function or class that makes one, of an importable module or a file: net.py:LeNet"
            command.add_argument("model", metavar="MODULE:FACTORY", type=_factory, help=where)
            sizes = "sizes of an input, such as 1x3x224x224; once for each input of the model"
            command.add_argument("--input", metavar="SIZES", type=_sizes, action="append", required=True, help=sizes)
            command.add_argument(
                "--dtype", choices=DTYPES, default="float32", help="of inputs and model (default: %(default)s)"
            )
            command.add_argument("--device", type=_device, default="cpu", help="default: %(default)s")
            formats = "inputs and model in channels_last memory (default: as torch makes them)"
            command.add_argument("--channels-last", action="store_true", help=formats)
        for name, settings in OPTIONS.get(run, {}).items():
            command.add_argument(name, **settings)
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes such as 1x3x224x224")
    return tuple(map(int, sizes))


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no device such as cpu or cuda:0") from None
    try:
        torch.empty(0, device=device)
    except Exception:  # each backend has its own
        raise argparse.ArgumentTypeError(f"this machine, or this build of torch, has no device {text!r}") from None
    return device


def _factory(text: str) -> tuple[str, str]:
    module, colon, name = text.rpartition(":")
    if not (module and colon and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form MODULE:FACTORY, such as net.py:LeNet")
    return module, name


def _model_and_sample(chosen: argparse.Namespace) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = _made(*chosen.model)
    to = {"dtype": DTYPES[chosen.dtype], "device": chosen.device}
    torch.manual_seed(0)
    sample = tuple(_random(sizes, to) for sizes in chosen.input)
    model = model.to(**to).eval()
    if chosen.channels_last:
        images = tuple(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in sample)
        return model.to(memory_format=torch.channels_last), images
    return model, sample


def _random(sizes: tuple[int, ...], to: dict) -> Tensor:
    try:
        return torch.randn(sizes, **to)
    except RuntimeError as error:  # too large, as a rule
        raise ValueError(f"no input of {'x'.join(map(str, sizes))} can be made: {error}") from error


def _made(where: str, name: str) -> nn.Module:
    """The module that `name` of a Python module or file is, or makes. Raises `ValueError` if it is and makes none."""
    value = _imported(where)
    for part in name.split("."):
        if not hasattr(value, part):
            raise ValueError(f"{where} has no {name!r}")
        value = getattr(value, part)
    if isinstance(value, nn.Module):
        return value
    if not callable(value):
        raise ValueError(f"{name} of {where}, a value of type {type(value).__name__}, is and makes no module")
    try:
        inspect.signature(value).bind()
    except TypeError as error:
        raise ValueError(f"{name} of {where} has to make a module without arguments: {error}") from error
    except ValueError:  # it has no signature
        pass
    model = value()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} of {where} gives a value of type {type(model).__name__}, not a torch.nn.Module")
    return model


def _imported(where: str) -> ModuleType:
    """An importable module, or that of a file, whose neighbours it can import."""
    if not where.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        return importlib.import_module(where)
    path = Path(where).absolute()
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such file", where)
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # for what is pickled; another of that name goes before
    spec.loader.exec_module(module)
    return module


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    message = str(error).strip().partition("\n")[0]
    expected = isinstance(error, (ValueError, RuntimeError, OSError)) and message
    return message if expected else ": ".join(filter(None, (type(error).__name__, message)))
