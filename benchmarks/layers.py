"""The unique layers of the networks, as `patch` finds them: a block by itself, how torch runs it and how we do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from tritonconv.capture.sites import capture
from tritonconv.geometry import ConvGeometry, PoolGeometry
from tritonconv.patching import trial
from tritonconv.survey.planning import Step, plan

from .measure import DEVICE
from .zoo import NETWORKS

# What a layer is, and what makes it so; the first that holds.
KINDS: dict[str, Callable[[str, object], bool]] = {
    "1-D": lambda pattern, g: "conv1d" in pattern,
    "transposed": lambda pattern, g: pattern.startswith("conv_transpose"),
    "pooling": lambda pattern, g: "_pool" in pattern,
    "batch norm": lambda pattern, g: pattern.startswith("batch_norm"),
    "fully connected": lambda pattern, g: pattern.startswith("linear"),
    "depthwise": lambda pattern, g: 1 < g.groups == g.C,
    "dilated": lambda pattern, g: g.dilation != (1, 1),
    "1×1": lambda pattern, g: g.taps == 1,
    "stem": lambda pattern, g: g.C <= 4,
    "3×3": lambda pattern, g: (g.R, g.S) == (3, 3),
    "larger": lambda pattern, g: True,
}


@dataclass(frozen=True)
class Layer:
    """A block: what `plan` says of it, and the piece of a network that runs it. `networks`: those that have it."""

    name: str
    kind: str
    step: Step
    piece: trial.Piece
    networks: list[str] = field(default_factory=list)


def name_of(step: Step) -> str:
    """Pattern, window, channels, size: `conv2d+relu 3×3 64→64 @ 56²`."""
    N, C, *image = step.input
    if not image:
        return f"{step.site.pattern} {C}→{step.output[1]}"
    size = f"{image[0]}²" if len(image) == 2 and image[0] == image[1] else "×".join(map(str, image))
    g, text = step.geometry, step.site.pattern
    if isinstance(g, ConvGeometry | PoolGeometry):
        text += f" {g.R}×{g.S}"
        for sign, value in {"/": g.stride, "d": g.dilation}.items():
            if max(value) > 1:
                text += f"{sign}{max(value)}"
    if isinstance(g, ConvGeometry):
        text += f" {C}→{step.output[1]}" + (f" in {g.groups} groups" if g.groups > 1 else "")
    else:
        text += f" {C}"
    return f"{text} @ {size}" + (f" → {step.output[-1]}" if "adaptive" in text else "")


def unique(networks: Iterable[str], batch: int = 1) -> Iterator[tuple[Layer, ...]]:
    """Each network's layers that none before it has, one network at a time: only that one is in memory."""
    seen: dict[tuple, Layer] = {}
    for network in networks:
        model = NETWORKS[network].build().eval().to(DEVICE)
        sample = torch.randn(batch, *NETWORKS[network].input, device=DEVICE)
        steps = {step.site.fqn: step for step in reversed(plan(model, sample).steps)}  # the first call of each
        model = _channels_last(model)
        with torch.no_grad():
            pieces = trial.pieces_of(model, capture(model, lambda fqn, module: True), sample)
        fresh = {}
        for fqn, piece in pieces.items():
            step = steps[fqn]
            key = name_of(step), step.geometry, step.input
            if key not in seen:
                seen[key] = fresh[key] = Layer(name_of(step), _kind(step), step, piece)
            if network not in seen[key].networks:
                seen[key].networks.append(network)
        yield tuple(fresh.values())


def _kind(step: Step) -> str:
    return next(kind for kind, holds in KINDS.items() if holds(step.site.pattern, step.geometry))


def _channels_last(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)


def nchw(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)
