"""Every operator × engine × dtype: forward, backward and double backward against torch in float64; and × GPU: compiled.

`python -m benchmarks operators` runs them all and writes docs/operators.md; the tests run half of the cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tritonconv import engines, functional
from tritonconv.engines import Engine
from tritonconv.targets.machine_code import TARGETS

from .compiled import compiled
from .measure import about, markdown, provenance

DOCUMENT = Path(__file__).parents[1] / "docs" / "operators.md"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ORDERS = ("forward", "backward", "double backward")
Rows = dict[str, dict[tuple[str, torch.dtype], str]]  # marks by operator, and by engine or target and dtype


@dataclass(frozen=True)
class Operator:
    """`ours` and `torchs` take tensors of `shapes`, all of which have gradients."""

    name: str
    ours: Callable[..., Tensor]
    torchs: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]


def _both(name: str, function: str, shapes, *args, **options) -> Operator:
    """The function of this name in both libraries, called alike."""
    ours, torchs = (getattr(library, function) for library in (functional, F))
    return Operator(name, lambda *t: ours(*t, *args, **options), lambda *t: torchs(*t, *args, **options), tuple(shapes))


def _activated(name: str, torchs: Callable[[Tensor], Tensor], size: tuple[int, int] = (6, 5)) -> Operator:
    return Operator(
        f"conv2d + {name}",
        lambda x, w, b: functional.conv2d(x, w, b, 1, 1, activation=name),
        lambda x, w, b: torchs(F.conv2d(x, w, b, 1, 1)),
        ((2, 3, *size), *CONV[1:]),
    )


def _with_prelu(function: str, shapes, training: bool = False, **options) -> Operator:
    """A convolution and PReLU with a slope for each channel; batch norm, or else a bias, between them: behind a bias a
    norm has derivatives that are zero but for what sums leave."""
    convolution, channels = function.removesuffix("_batch_norm"), shapes[2][0]
    norm = convolution != function
    shapes = (*shapes[:2], (channels,)) if norm else (*shapes, (channels,))

    def given(x: Tensor) -> tuple[Tensor, ...]:
        return (x.new_full((channels,), 0.25), x.new_full((channels,), 2.0)) if norm else ()

    def ours(x, w, *rest):
        *bias, slope = rest
        chosen = {"training": training} if norm else {}
        return getattr(functional, function)(x, w, *bias or [None], *given(x), activation=slope, **chosen, **options)

    def torchs(x, w, *rest):
        *bias, slope = rest
        y = getattr(F, convolution)(x, w, *bias, **options)
        return F.prelu(F.batch_norm(y, *given(x), training=training) if norm else y, slope)

    name = f"{convolution}{', depthwise' if options else ''}{' + batch_norm' if norm else ''} + prelu"
    mode = f", {'training' if training else 'evaluation'}" if norm else ""
    return Operator(name + mode, ours, torchs, shapes)


def _normed(function: str, shapes, training: bool, inner: str | None = None, **options) -> Operator:
    """A convolution, perhaps `inner` (a function of torch), batch norm, and sigmoid; the last of `shapes` is that of a
    residual, if there are four."""
    channels = shapes[2][0]
    added = ("residual",) * (len(shapes) - 3)

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_full((channels,), 0.25), x.new_full((channels,), 2.0)

    def ours(x, w, b, gamma, beta, *residual):
        fused = getattr(functional, f"{function}_batch_norm")
        given = {"training": training, "activation": "sigmoid"} | dict(zip(added, residual, strict=True))
        given |= {} if inner is None else {"inner": inner}
        return fused(x, w, b, *statistics(x), gamma, beta, **given, **options)

    def torchs(x, w, b, gamma, beta, *residual):
        y = getattr(F, function)(x, w, b, **options)
        y = y if inner is None else getattr(torch, inner)(y)
        return torch.sigmoid(sum(residual, F.batch_norm(y, *statistics(x), gamma, beta, training)))

    name = " + ".join((function, *([inner] if inner else []), "batch_norm", *["add"] * len(added), "sigmoid"))
    shapes = *shapes[:3], (channels,), (channels,), *shapes[3:]
    return Operator(f"{name}, {'training' if training else 'evaluation'}", ours, torchs, shapes)


def _unpooled(library, x: Tensor) -> Tensor:
    return library.max_unpool2d(*library.max_pool2d(x, 3, 2, return_indices=True), 3, 2)


CONV = (2, 3, 6, 5), (4, 3, 3, 3), (4,)
TRANSPOSED = (2, 3, 4, 3), (3, 4, 3, 3), (4,)
GROUPED = (2, 4, 4, 3), (4, 3, 3, 2), (6,)
ROWS = (2, 5, 9), (6, 5, 3), (6,)
UPWARDS = (2, 6, 5), (6, 5, 4), (5,)
OPERATORS = (
    _both("conv2d", "conv2d", CONV),
    _both("conv2d, stride, padding, dilation", "conv2d", CONV, (2, 1), (2, 1), (2, 1)),
    _both("conv2d, 2 groups", "conv2d", ((2, 4, 6, 5), (6, 2, 3, 3), (6,)), groups=2),
    _both("conv2d, depthwise", "conv2d", ((2, 4, 6, 5), (4, 1, 3, 3), (4,)), padding=1, groups=4),
    _both("conv2d, 32 channels (by Winograd)", "conv2d", ((1, 32, 8, 8), (32, 32, 3, 3), (32,)), padding=1),
    _both("conv2d, 1×1", "conv2d", ((2, 3, 6, 5), (4, 3, 1, 1), (4,))),
    _activated("relu", F.relu),
    _activated("relu6", F.relu6),
    _activated("leaky_relu(0.2)", lambda x: F.leaky_relu(x, 0.2)),
    _activated("elu(0.5)", lambda x: F.elu(x, 0.5)),
    _activated("sigmoid", torch.sigmoid),
    _activated("tanh", torch.tanh),
    _activated("silu", F.silu),
    _activated("gelu", F.gelu),
    _activated("gelu_tanh", partial(F.gelu, approximate="tanh")),
    _activated("hardswish", F.hardswish),
    # torch's own has no second derivative. Of this size, bfloat16 rounds no sum to one of the kinks.
    _activated("hardsigmoid", lambda x: F.relu6(x + 3) / 6, (5, 5)),
    _with_prelu("conv2d", CONV),
    _with_prelu("conv2d", ((2, 4, 6, 5), (4, 1, 3, 3), (4,)), groups=4),
    _with_prelu("conv_transpose2d", TRANSPOSED),
    _with_prelu("conv1d", ROWS),
    _with_prelu("conv2d_batch_norm", CONV, training=True),
    _with_prelu("conv2d_batch_norm", CONV),
    _with_prelu("conv_transpose2d_batch_norm", TRANSPOSED),
    Operator(
        "conv2d + tanh + max_pool2d",
        lambda x, w, b: functional.conv2d(x, w, b, 1, 1, activation="tanh", max_pool=2),
        lambda x, w, b: F.max_pool2d(torch.tanh(F.conv2d(x, w, b, 1, 1)), 2),
        CONV,
    ),
    _normed("conv2d", (*CONV, (2, 4, 6, 5)), True, padding=1),
    _normed("conv2d", (*CONV, (2, 4, 6, 5)), False, padding=1),
    _normed("conv2d", CONV, False, inner="tanh"),
    _both("batch_norm, training", "batch_norm", ((2, 3, 6, 5),), None, None, training=True),
    _both("group_norm, 2 groups", "group_norm", ((2, 6, 4, 5),), 2),
    Operator(
        "group_norm + silu",
        lambda x, w, b: functional.group_norm(x, 3, w, b, activation="silu"),
        lambda x, w, b: F.silu(F.group_norm(x, 3, w, b)),
        ((2, 6, 4, 5), (6,), (6,)),
    ),
    _both("instance_norm", "instance_norm", ((2, 3, 6, 5),)),
    _both("conv_transpose2d, stride 2", "conv_transpose2d", TRANSPOSED, 2, 1, 1),
    _both("conv_transpose2d, dilation, 2 groups", "conv_transpose2d", GROUPED, dilation=2, groups=2),
    _normed("conv_transpose2d", TRANSPOSED, True, stride=2, padding=1),
    _normed("conv_transpose2d", TRANSPOSED, False, stride=2, padding=1),
    _both("conv1d, stride 2", "conv1d", ((2, 3, 9), (4, 3, 3), (4,)), 2, 1),
    _both("conv1d", "conv1d", ROWS, padding=2, dilation=2),
    _both("conv1d, stride 2, dilation, groups", "conv1d", ((2, 12, 9), (12, 6, 3), (12,)), 2, 1, 2, groups=2),
    Operator(
        "causal_conv1d, dilation",
        lambda x, w, b: functional.causal_conv1d(x, w, b, 2),
        lambda x, w, b: F.conv1d(F.pad(x, (4, 0)), w, b, dilation=2),
        ROWS,
    ),
    _normed("conv1d", (*ROWS, (2, 6, 9)), True, padding=1),
    _normed("conv1d", (*ROWS, (2, 6, 9)), False, padding=1),
    _both("conv_transpose1d, stride 2", "conv_transpose1d", UPWARDS, 2, 1),
    _normed("conv_transpose1d", UPWARDS, True, stride=2),
    _normed("conv_transpose1d", UPWARDS, False, stride=2),
    _both("batch_norm of [N, C, L], training", "batch_norm", ((2, 3, 9),), None, None, training=True),
    _both("max_pool1d", "max_pool1d", ((2, 3, 9),), 3, 2, 1),
    _both("avg_pool1d", "avg_pool1d", ((2, 3, 9),), 3, 2, 1),
    _both("lp_pool1d", "lp_pool1d", ((2, 3, 9),), 2.0, 2),
    _both("adaptive_avg_pool1d", "adaptive_avg_pool1d", ((2, 3, 9),), 4),
    _both("adaptive_max_pool1d", "adaptive_max_pool1d", ((2, 3, 9),), 4),
    _both("max_pool2d", "max_pool2d", ((2, 3, 6, 5),), 3, 2, 1),
    Operator("max_pool2d + max_unpool2d", partial(_unpooled, functional), partial(_unpooled, F), ((2, 3, 6, 5),)),
    _both("avg_pool2d", "avg_pool2d", ((2, 3, 6, 5),), 3, 2, 1),
    _both("lp_pool2d", "lp_pool2d", ((2, 3, 6, 5),), 2.0, 2),
    _both("adaptive_avg_pool2d", "adaptive_avg_pool2d", ((2, 3, 7, 5),), (3, 2)),
    _both("adaptive_max_pool2d", "adaptive_max_pool2d", ((2, 3, 7, 5),), (3, 2)),
    _both("global average", "adaptive_avg_pool2d", ((2, 3, 6, 5),), 1),
)


@dataclass(frozen=True)
class Cell:
    operator: Operator
    engine: Engine
    dtype: torch.dtype
    order: str

    def __str__(self) -> str:
        return f"{self.operator.name}-{self.engine.name}-{str(self.dtype)[6:]}-{self.order}"


def cells() -> Iterator[Cell]:
    for operator in OPERATORS:
        for engine in map(engines.ENGINES.get, engines.available()):
            for dtype in DTYPES:
                for order in ORDERS:
                    yield Cell(operator, engine, dtype, order)


def results(function: Callable[..., Tensor], tensors: list[Tensor], order: str) -> list[Tensor]:
    """The output; its gradients; or those of the sum of the gradients' squares, with respect to dy too."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = function(*tensors)
    if order == "forward":
        return [y.detach()]
    dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y).requires_grad_()
    gradients = torch.autograd.grad(y, tensors, dy, create_graph=order == "double backward")
    if order == "backward":
        return list(gradients)
    penalty = sum(gradient.float().square().sum() for gradient in gradients)
    second = torch.autograd.grad(penalty, (*tensors, dy), allow_unused=True)
    return [torch.zeros_like(t) if s is None else s for t, s in zip((*tensors, dy), second, strict=True)]


def run(cell: Cell) -> None:
    """Raises AssertionError where ours is further from the truth than a few roundings of the dtype allow."""
    generator = torch.Generator().manual_seed(0)
    device = torch.device(cell.engine.device_types[0])
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in cell.operator.shapes]
    tensors = [t.to(device, cell.dtype) for t in tensors]
    with engines.use(cell.engine.name):
        got = results(cell.operator.ours, tensors, cell.order)
    want = results(cell.operator.torchs, [t.double() for t in tensors], cell.order)
    assert len(got) == len(want)
    for ours, truth in zip(got, want, strict=True):
        scale = truth.abs().max().clamp(min=1)
        error = ((ours.double() - truth).abs().max() / scale).item()
        assert error <= 16 * max(torch.finfo(cell.dtype).eps, 2.0**-30 if cell.order == "double backward" else 0), error


def calls() -> dict[tuple[str, torch.dtype, str], Callable[[], object]]:
    """The table's calls, by operator, dtype and order."""
    return {
        (operator.name, dtype, order): partial(
            results, operator.ours, [torch.ones(shape, dtype=dtype) for shape in operator.shapes], order
        )
        for operator in OPERATORS
        for dtype in DTYPES
        for order in ORDERS
    }


def main(arguments: Sequence[str] = ()) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks operators", description=__doc__).parse_args(arguments)
    here: Rows = {}
    for cell in track(list(cells()), "operators"):
        try:
            run(cell)
            mark = cell.order[0]
        except AssertionError:
            mark = "–"
        _note(here, cell.operator.name, cell.engine.name, cell.dtype, mark)
    on_gpus: Rows = {}
    for target in TARGETS:
        for (name, dtype, order), right in compiled(calls(), target).items():
            _note(on_gpus, name, target, dtype, order[0] if right else "–")
    DOCUMENT.write_text(
        "# Operators\n\n"
        "f: forward, b: backward, d: double backward agree with torch in float64 to a few roundings of the dtype;\n"
        "–: they do not. Written by `python -m benchmarks operators`; the tests run half of these cells.\n\n"
        f"{_table(here)}\n\n"
        "## GPUs\n\n"
        "f, b, d: all that forward, backward or double backward launches there compiles for it, with Triton's own\n"
        "compiler, and fits into its shared memory; –: it does not. Nothing was run there for this.\n\n"
        f"{_table(on_gpus)}\n\n{about(provenance())}\n",
        encoding="utf-8",
    )
    Console().print(f"{len(here)} operators, written to {DOCUMENT}")


def _note(rows: Rows, name: str, machine: str, dtype: torch.dtype, mark: str) -> None:
    row = rows.setdefault(name, {})
    row[machine, dtype] = row.get((machine, dtype), "") + mark


def _table(rows: Rows) -> str:
    """Operators × (engine or target, dtype)."""
    columns = list(next(iter(rows.values())))
    heading = ["operator", *(f"{machine} {str(dtype)[6:]}" for machine, dtype in columns)]
    return markdown(heading, ([name, *(row[c] for c in columns)] for name, row in rows.items()))
