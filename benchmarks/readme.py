"""Writes the stored figures into the documentation: between `<!-- figures: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from .measure import RESULTS, about, load
from .tables import TABLES, kernel_loading, minutes

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

MORE = {
    "loading": lambda: kernel_loading(load(RESULTS / "startup.json")),
    "minutes": lambda: minutes({path.stem: load(path) for path in RESULTS.glob("*.json")}).markdown(),
}


def figures(name: str) -> str:
    """The tables of a stored result, and where it comes from; or what `MORE` has. KeyError: it has no tables."""
    if name in MORE:
        return MORE[name]()
    stored = load(RESULTS / f"{name}.json")
    tables = "\n\n".join(table.markdown() for table in TABLES[stored["benchmark"]](stored))
    return f"{tables}\n\n<sub>{about(stored)}</sub>"


def rendered(text: str) -> str:
    """`text` with the stored figures in its marked places; where none are stored, that is what stands there."""

    def render(match: re.Match) -> str:
        begin, name, end = match.groups()
        try:
            return f"{begin}{figures(name)}\n{end}"
        except FileNotFoundError:
            command, gpu, _ = name.partition("-gpu")
            where = " on a GPU" if gpu else ""
            return f"{begin}`python -m benchmarks {command}` has not been run{where}.\n{end}"

    return _BLOCK.sub(render, text)


def main(arguments: Sequence[str] = ()) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks readme", description=__doc__).parse_args(arguments)
    for path in DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")
