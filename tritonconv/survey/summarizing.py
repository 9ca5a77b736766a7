"""`summary(model, sample)`: the bookkeeping of a CNN, layer by layer, and which kernel runs what."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from torch import nn

from ..patching.reporting import Printable
from ..patching.swap import name_of
from .survey import Layer, survey


@dataclass(frozen=True)
class Summary(Printable):
    """Every layer of an inference of the model `name`, in the order in which they ran. Prints as a table."""

    name: str
    parameters: int
    layers: tuple[Layer, ...]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __rich__(self) -> Table:
        flops, moved = (sum(getattr(layer, what) for layer in self) for what in ("flops", "bytes"))
        caption = f"{self.parameters:,} parameters, {flops:,} FLOPs and {moved:,} bytes in {len(self)} layers"
        table = Table(title=f"tritonconv: {self.name}", caption=caption)
        for heading in ("layer", "input", "output"):
            table.add_column(heading, overflow="fold")
        for heading in ("parameters", "field", "jump", "MFLOPs", "MB", "FLOPs / byte"):
            table.add_column(heading, justify="right")
        table.add_column("runs as", overflow="fold")
        for layer in self:
            field, jump = ([getattr(axis, what) for axis in layer.field or ()] for what in ("size", "jump"))
            table.add_row(
                layer.name or "(model)", times(layer.input), times(layer.output), f"{layer.parameters:,}", pair(field),
                pair(jump), f"{layer.flops / 1e6:.2f}", f"{layer.bytes / 1e6:.2f}",
                f"{layer.intensity:.1f}", runs_as(layer),
            )  # fmt: skip
        return table

    def to_json(self) -> str:
        """A JSON object {"model", "parameters", "layers": [{name, kind, input, output, parameters, field, jump, flops,
        bytes, intensity, runs_as}, …]}; field and jump are [along H, along W], or null where nothing is seen."""
        layers = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "input": layer.input,
                "output": layer.output,
                "parameters": layer.parameters,
                "field": layer.field and [float(axis.size) for axis in layer.field],
                "jump": layer.field and [float(axis.jump) for axis in layer.field],
                "flops": layer.flops,
                "bytes": layer.bytes,
                "intensity": layer.intensity,
                "runs_as": runs_as(layer),
            }
            for layer in self
        ]
        return json.dumps({"model": self.name, "parameters": self.parameters, "layers": layers}, indent=2)


def summary(model: nn.Module, sample: object) -> Summary:
    """Shapes, parameters, receptive field, FLOPs and bytes of every layer of `model`, and what runs it once patched.

    sample: the model's input, a tuple of its inputs, or a dict of them by name. It is run twice, as inference, by the
    unpatched model, which stays as it is. Raises `ValueError` if the model cannot run it.
    """
    layers, _ = survey(model, sample, "summary")
    return Summary(name_of(model), sum(p.numel() for p in model.parameters()), tuple(layers))


def runs_as(layer: Layer) -> str:
    """The kernel that runs a layer once the model is patched."""
    site = layer.site
    if layer.refusal:
        return "torch"
    return site.pattern if layer.name == site.fqn or not site.members else f"in {site.fqn}"


def times(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


def pair(values: Sequence) -> str:
    """One number if both axes have it."""
    return "×".join(f"{float(value):g}" for value in dict.fromkeys(values))
