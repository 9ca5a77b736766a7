"""Assembly of a GPU (SASS or AMD's) read as instructions, basic blocks and loops."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

# A line: SASS has an address in a comment, then maybe a predicate; both write labels as ".L…:".
_LABEL = re.compile(r"(\.L\w+):")
_INSTRUCTION = re.compile(r"\s+(?:/\*[0-9a-f]{4,}\*/\s+)?(@!?U?P\w+ +)?([A-Z][\w.]*|[a-z]+_\w+)\b(.*)")
_BRANCH = re.compile(r"BRA|s_c?branch")
_END = re.compile(r"EXIT|RET|s_endpgm|s_setpc|s_branch|BRA")


class Assembly:
    """`blocks` are the basic blocks as lists of mnemonics, `successors` the blocks that may run after each."""

    def __init__(self, text: str):
        self.blocks: list[list[str]] = [[]]
        labels: dict[str, int] = {}
        jumps: list[tuple[int, str]] = []
        self.successors: list[set[int]] = []
        falls: list[bool] = [True]  # whether the block runs on into the next one

        def begin() -> None:
            self.blocks.append([])
            falls.append(True)

        for line in text.splitlines():
            if label := _LABEL.match(line):
                if self.blocks[-1]:
                    begin()
                labels[label[1]] = len(self.blocks) - 1
            elif instruction := _INSTRUCTION.match(line):
                predicate, mnemonic, operands = instruction.groups()
                self.blocks[-1].append(mnemonic)
                if _BRANCH.match(mnemonic):
                    jumps.append((len(self.blocks) - 1, re.search(r"\.L\w+", operands)[0]))
                if _BRANCH.match(mnemonic) or _END.match(mnemonic):
                    conditional = predicate or mnemonic.startswith("s_cbranch") or re.match(r"\s+!?U?P\w+,", operands)
                    falls[-1] = bool(conditional)
                    begin()
        self.successors = [{at + 1} if runs_on else set() for at, runs_on in enumerate(falls)]
        self.successors[-1].clear()
        for at, label in jumps:
            self.successors[at].add(labels[label])

    def count(self, blocks: Iterator[int] | None = None) -> Counter[str]:
        """The instructions by mnemonic, of all the code unless `blocks` are given."""
        chosen = range(len(self.blocks)) if blocks is None else blocks
        return Counter(mnemonic for block in chosen for mnemonic in self.blocks[block])

    def loops(self) -> list[frozenset[int]]:
        """The natural loops: a block that is branched back to, and those that lead there without passing it."""
        predecessors: list[set[int]] = [set() for _ in self.blocks]
        for at, after in enumerate(self.successors):
            for block in after:
                predecessors[block].add(at)
        bodies: dict[int, set[int]] = {}
        for tail, head in self._back_edges():
            body, waiting = bodies.setdefault(head, {head}), [tail]
            while waiting:
                if (block := waiting.pop()) not in body:
                    body.add(block)
                    waiting += predecessors[block]
        return [frozenset(body) for body in bodies.values()]

    def main_loop(self, counts: Callable[[str], object]) -> Counter[str]:
        """The instructions of the longest innermost loop; of those with instructions that `counts` accepts, where the
        code has any such."""
        loops = self.loops()
        if any(counts(mnemonic) for block in self.blocks for mnemonic in block):
            loops = [loop for loop in loops if any(counts(m) for block in loop for m in self.blocks[block])]
        innermost = [self.count(loop) for loop in loops if not any(other < loop for other in loops)]
        return max(innermost, key=Counter.total, default=Counter())

    def _back_edges(self) -> Iterator[tuple[int, int]]:
        """(block, block that it branches back to), found depth first: the latter is still being visited."""
        visiting, seen = {0: iter(sorted(self.successors[0]))}, {0}
        while visiting:
            at = next(reversed(visiting))
            block = next(visiting[at], None)
            if block is None:
                del visiting[at]
            elif block in visiting:
                yield at, block
            elif block not in seen:
                seen.add(block)
                visiting[block] = iter(sorted(self.successors[block]))
