"""Every block of the networks by itself, in every direction: fp32, against torch, interleaved.

forward: inference. dgrad, wgrad: the gradients of the input and of the weight alone, in training, batch norm and
activation included. A peer whose result is wrong is left out. `of least` is the time that the machine's measured
ceilings allow, over ours: FLOPs at the rate of multiply-adds in registers (fewer by what Winograd's algorithm saves,
where it is used), input, parameters and output once at the rate of the cache or memory that holds them, whichever takes
longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from rich.console import Console
from torch import Tensor, nn
from triton import cdiv

from tritonconv import configs, engines
from tritonconv.launch.common import config_of

from . import ceilings
from .ceilings import Ceilings
from .comparison import OURS, Row, compare, parser, publish
from .layers import Layer, nchw, unique
from .measure import DEVICE
from .zoo import NETWORKS

# Of the result's length. Rounding may move an activation's input past its kink, which costs a gradient more.
TOLERANCE = {"forward": 1e-4, "dgrad": 1e-2, "wgrad": 1e-2}
LEAST = 0.004  # seconds of a peer's turn

Run = Callable[[], Tensor]


def inputs_of(layer: Layer, memory_format: torch.memory_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(x.shape, generator=generator).to(DEVICE) for x in layer.piece.inputs]
    return [x.to(memory_format=memory_format) if x.dim() == 4 else x for x in tensors]


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def forward(run: Callable, module: nn.Module, inputs: list[Tensor]) -> Run:
    module.eval()
    return torch.no_grad()(lambda: _first(run(*inputs)))


def weights(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.dim() > 1]


def gradient(of_weight: bool, run: Callable, module: nn.Module, inputs: list[Tensor]) -> Run:
    """Runs backward alone, again and again."""
    module.train().requires_grad_(False)
    wanted = weights(module) if of_weight else inputs[:1]
    for tensor in wanted:
        tensor.requires_grad_()
    y = _first(run(*inputs))
    dy = torch.empty_like(y).copy_(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)[0]


DIRECTIONS = {"forward": forward, "dgrad": partial(gradient, False), "wgrad": partial(gradient, True)}


def peers_of(layer: Layer, direction: str, compiled: bool) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Peers, and what makes their functions."""
    ours, theirs = layer.piece.ours, layer.piece.theirs
    plain = nchw(theirs)
    make, channels_last = DIRECTIONS[direction], partial(inputs_of, layer, torch.channels_last)
    yield OURS, lambda: make(ours, theirs, channels_last())
    yield "torch NCHW", lambda: make(plain, plain, inputs_of(layer, torch.contiguous_format))
    yield "torch channels_last", lambda: make(theirs, theirs, channels_last())
    if compiled:
        yield "torch.compile", lambda: make(torch.compile(theirs), theirs, channels_last())


def checked(prepare: Callable[[], Run], want: Tensor, tolerance: float) -> Run:
    run = prepare()
    error = float((run() - want).norm() / want.norm())
    if not error <= tolerance:
        raise ValueError(f"its result is off by {error:.1e} of the length, so it is not timed")
    return run


def algorithm(layer: Layer, direction: str) -> tuple[str | None, int]:
    """How ours computes it, where there is a choice, and the pixels of Winograd's output tiles, along an axis, or 1."""
    step, target = layer.step, engines.engine_for(DEVICE).target(DEVICE)
    transposed = step.site.pattern.startswith("conv_transpose2d")
    known = transposed or step.site.pattern.startswith("conv2d")
    if direction == "forward" or not known or layer.kind == "depthwise":
        return step.algorithm, step.config.OUT if step.algorithm == "Winograd" else 1
    op = "fprop" if transposed else "dgrad"
    if direction == "dgrad" and configs.algorithm(op, step.geometry, torch.float32, target) == "winograd":
        problem = configs.winograd.as_fprop(op, step.geometry)
        return "Winograd", config_of("winograd", problem, torch.float32, target).OUT
    return step.algorithm and "implicit GEMM", 1


def saving(OUT: int, window: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> float:
    """How many times fewer multiplications tiles of OUT outputs along an axis take, for a window of so many taps, each
    phase of the stride by itself."""
    axes = [axis for axis in zip(window, stride, strict=True) if axis[0] > 1]
    return math.prod(taps * OUT / (step * (cdiv(taps, step) + OUT - 1)) for taps, step in axes)


def measure(layer: Layer, direction: str, limit: Ceilings, options) -> Row | None:
    """None where there is no such direction, or torch itself cannot run it."""
    step = layer.step
    if direction == "wgrad" and not weights(layer.piece.theirs):
        return None
    peers = dict(peers_of(layer, direction, options.compile))
    try:
        want = peers["torch NCHW"]()()
    except ValueError:  # batch norm of one value per channel
        return None
    (how, OUT), g = algorithm(layer, direction), step.geometry
    saved = saving(OUT, (g.R, g.S), g.stride) if how == "Winograd" else 1
    peers = {peer: partial(checked, prepare, want, TOLERANCE[direction]) for peer, prepare in peers.items()}
    facts = {
        "kind": layer.kind,
        "networks": layer.networks,
        "algorithm": how,
        "flops": step.flops,
        "bytes": step.bytes,
        "least_ms": 1e3 * limit.least(step.flops / saved, step.bytes),
    }
    with torch._functorch.config.patch(donated_buffer=False):  # else torch.compile's backward runs but once
        return compare(direction, layer.name, peers, options.seconds, facts, LEAST)


def rate(what: str, row: Row) -> str:
    return f"{row.facts[what] / row.figures[OURS][1] / 1e6:.0f}" if row.facts[what] and OURS in row.figures else "–"


def share(row: Row) -> float | None:
    """Of the least time that the ceilings allow."""
    return row.facts["least_ms"] / row.figures[OURS][1] if OURS in row.figures else None


COLUMNS = {
    "kind": lambda row: row.facts["kind"],
    "GFLOP/s": partial(rate, "flops"),
    "GB/s": partial(rate, "bytes"),
    "of least": lambda row: "–" if share(row) is None else f"{share(row):.0%}",
}


def main(arguments: Sequence[str] = ()) -> None:
    made = parser("kernels", __doc__, NETWORKS, seconds=0.1)
    made.add_argument("--direction", nargs="+", choices=DIRECTIONS, default=tuple(DIRECTIONS), help="(default: all)")
    made.add_argument("--compile", action="store_true", help="compare with torch.compile too, which takes long")
    options = made.parse_args(arguments)
    limit, rows, console = ceilings.measure(), [], Console()
    console.print(f"ceilings: {limit}")
    for layers in unique(options.only or NETWORKS):
        for layer in layers:
            rows += [row for d in options.direction if (row := measure(layer, d, limit, options)) is not None]
        console.print(f"{len(rows)} rows", end="\r")
    rows.sort(key=lambda row: tuple(DIRECTIONS).index(row.group))
    publish("kernels", "blocks of networks, batch 1, fp32", rows, options, COLUMNS, ceilings=limit.to_json())
