"""Which stores share a loop nest: neighbours of one shape that share an expression, such as the outputs of a small
transform. One nest computes what they share once, in registers; each in a nest of its own would need it in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from .elements import PURE
from .ir import Block, Op, Value


def siblings(block: Block) -> list[tuple[Op, ...]]:
    """The groups of stores of a block, each in the block's order."""
    groups = []
    for run in _runs(block):
        reach: dict[Value, set[Op]] = {}  # the stores of the run that a value goes into
        for op in reversed(block.ops[: block.ops.index(run[-1])]):
            if op.name in PURE and op.name != "arith.constant" and len(op.results) == 1:
                stores = {user for user in op.result.users if user in run}
                reach[op.result] = stores.union(*(reach.get(r, ()) for u in op.result.users for r in u.results))
        parts = [{store} for store in run]
        for value, stores in reach.items():
            if len(stores) > 1 and value.type.rank and value.type.is_float:
                joined = set().union(*(part for part in parts if part & stores))
                parts = [part for part in parts if not part & stores] + [joined]
        groups += [tuple(store for store in run if store in part) for part in parts if len(part) > 1]
    return groups


def _runs(block: Block) -> Iterator[list[Op]]:
    """Stores of one shape with nothing between them that reads memory or runs a nest of its own."""
    run: list[Op] = []
    for op in block.ops:
        if op.name == "tt.store" and op.operands[1].type.shape:
            if run and run[0].operands[1].type.shape != op.operands[1].type.shape:
                yield run
                run = []
            run.append(op)
        elif run and (op.name not in PURE or op.name == "tt.load"):
            yield run
            run = []
    if run:
        yield run
