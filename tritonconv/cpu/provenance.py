"""Which of a kernel's arguments a pointer was made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from .ir import Op, Value, walk

# Operations whose result comes from their first operand, and those whose result comes from one of several.
_MOVED = {"tt.addptr", "tt.bitcast", "tt.splat", "tt.unsplat", "tt.broadcast", "tt.expand_dims", "tt.reshape",
          "tt.trans"}  # fmt: skip
_CHOSEN = {"arith.select": slice(1, 3), "tt.join": slice(0, 2), "tt.cat": slice(0, 2)}


class Provenance:
    def __init__(self, function: Op):
        self.arguments = set(function.body.args)
        self.sources: dict[Value, list[Value]] = defaultdict(list)  # what a value may come from
        blocks = {block.label: block for block in function.regions[0]}
        for op in walk(function):
            if op.name in _MOVED:
                self._flow(op.results, op.operands[:1])
            elif op.name in _CHOSEN:
                for source in op.operands[_CHOSEN[op.name]]:
                    self._flow(op.results, [source])
            elif op.name == "scf.for":
                for values in (op.operands[3:], op.body.ops[-1].operands):
                    self._flow(op.body.args[1:], values)
                    self._flow(op.results, values)
            elif op.name == "scf.while":
                before, after = (region[0] for region in op.regions)
                passed = before.ops[-1].operands[1:]
                self._flow(before.args, op.operands)
                self._flow(before.args, after.ops[-1].operands)
                self._flow(after.args, passed)
                self._flow(op.results, passed)
            elif op.name == "scf.if" and op.results:
                for region in op.regions:
                    self._flow(op.results, region[0].ops[-1].operands)
            elif op.name in ("cf.br", "cf.cond_br"):
                values = iter(op.operands[op.name == "cf.cond_br" :])
                for label in op.successors:
                    self._flow(blocks[label].args, [next(values) for _ in blocks[label].args])

    def _flow(self, targets: Iterable[Value], values: Iterable[Value]):
        for target, value in zip(targets, values, strict=True):
            self.sources[target].append(value)

    def argument(self, pointer: Value) -> Value | None:
        """The one argument that `pointer` comes from; None if there are several, or none (it was loaded, say)."""
        seen: set[Value] = set()
        pending = [pointer]
        while pending:
            value = pending.pop()
            if value in seen:
                continue
            seen.add(value)
            if value not in self.arguments and value not in self.sources:
                return None
            pending += self.sources[value] if value not in self.arguments else []
        found = seen & self.arguments
        return found.pop() if len(found) == 1 else None
