"""A block that was found in a graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from ..blocks.block import Block, CallBlock
from ..patching.reporting import Status
from .nodes import CONV_CALLS
from .through import name_of


@dataclass(frozen=True)
class Match:
    """A block in a graph, and the nodes it covers, in order. One of them is the `addition` of a residual, if any. Where
    no module of torch's normalizes, `statistics` are what the norm's function gets after its input, or a scale and a
    shift."""

    block: Block
    nodes: tuple[fx.Node, ...]
    status: Status = "swapped"
    reason: str = ""
    addition: fx.Node | None = None
    statistics: tuple = ()

    @property
    def in_caller(self) -> bool:
        """Whether it takes a rewritten forward, because no module of its own computes just this."""
        return self.status == "fused" or (self.status == "swapped" and not self.block.members)

    @property
    def name(self) -> str:
        """What the site goes by: the convolution, pooling or norm, or the call of its function."""
        return self.block.site or name_of(self.call if isinstance(self.block, CallBlock) else self.nodes[0])

    @property
    def call(self) -> fx.Node:
        """Of a `CallBlock`, that of the convolution."""
        return next(node for node in self.nodes if node.target in CONV_CALLS)

    @property
    def residual(self) -> fx.Node | None:
        """What it adds, computed outside of it: by another block, perhaps, whose node then changes as that is fused."""
        return self.addition and next(value for value in self.addition.args if value not in self.nodes)

    @property
    def place(self) -> fx.Node:
        """The node in whose place the block runs: its first, since what comes later may overwrite the input; with a
        residual the addition, up to which nothing does."""
        return self.addition or self.nodes[0]

    def longer(self, node: fx.Node, **block) -> Match:
        """With one more node, and with what that adds to the block."""
        return replace(self, block=replace(self.block, **block), nodes=(*self.nodes, node), status="fused")
