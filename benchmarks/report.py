"""Writes one page of all that is stored, pictures in it: `results/report.html`."""

from __future__ import annotations

import argparse
import base64
import html
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from . import ceilings, pictures
from .comparison import geometric_mean, rows_of
from .measure import RESULTS, about, load
from .tables import TABLES, Table, kernel_loading, medians, of_layers, ratio

PAGE = Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Section:
    """A benchmark's part of the page. `more`: a table that is folded away."""

    benchmark: str
    title: str
    text: str
    pictures: tuple[str, ...] = ()
    more: Callable[[dict], list[Table]] | None = None


SECTIONS = (
    Section(
        "networks",
        "Inference of whole networks",
        "The model is patched in one line. Each figure is their median time ÷ ours: above 1 ours is faster. torch is "
        "the better of NCHW and channels_last, torch.compile the better of unfrozen and frozen.",
        ("speedup",),
    ),
    Section(
        "training",
        "A training step",
        "Forward, backward and SGD, against the better of torch's memory formats and torch.compile.",
        ("training",),
    ),
    Section(
        "kernels",
        "Every block by itself",
        "The unique blocks of all networks, one image. Ceilings are measured in the same run; a share of them is the "
        "time that they allow at least, over ours.",
        ("roofline",),
        of_layers,
    ),
    Section(
        "scaling",
        "How it scales",
        "A 3×3 convolution with batch norm and ReLU; 64 channels, 56²; bands are the middle half of what was measured.",
        ("scaling",),
        medians,
    ),
    Section("cpu", "Triton programs on the CPU target", "Programs that are not ours, and plain layers, against torch."),
    Section("memory", "Memory of a training step", "In MiB; the ratio is the best other peer's over ours."),
    Section("startup", "Starting", "Patch and first inference of one image, each in a process of its own."),
)


def stored(benchmark: str) -> dict | None:
    path = RESULTS / f"{benchmark}.json"
    return load(path) if path.exists() else None


def headlines() -> Iterator[tuple[str, str]]:
    """A figure, and what it says: geometric means of ratios to the best peer."""
    for benchmark, what in {"networks": "inference", "training": "training step"}.items():
        found = stored(benchmark)
        rows = rows_of(found) if found else []
        for group in dict.fromkeys(row.group for row in rows):
            members = [row for row in rows if row.group == group]
            for against, peers in {
                "eager torch": ("torch NCHW", "torch channels_last"),
                "the best peer of each network": tuple(dict.fromkeys(peer for row in members for peer in row.peers)),
            }.items():
                if mean := geometric_mean(row.over(peers) for row in members):
                    faster = sum((row.over(peers) or 0) >= 1 for row in members)
                    text = f"{what}, {group}, against {against}; faster on {faster} of {len(members)} networks"
                    yield f"{ratio(mean)}×", text


def _picture(name: str, folder: Path) -> str:
    path = pictures.draw(name, folder, "svg")
    if path is None:
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(name)}">'


def section_html(section: Section, folder: Path) -> str:
    found = stored(section.benchmark)
    if found is None:
        return ""
    parts = [f'<section id="{section.benchmark}"><h2>{section.title}</h2>', f"<p>{html.escape(section.text)}</p>"]
    parts += [_picture(name, folder) for name in section.pictures]
    parts += [table.html() for table in TABLES.get(section.benchmark, lambda stored: [])(found)]
    if "ceilings" in found:
        parts.append(f"<p>Ceilings: {html.escape(str(ceilings.of_json(found['ceilings'])))}.</p>")
    if section.benchmark == "startup":
        parts.append(f"<p>{html.escape(kernel_loading(found))}</p>")
    if section.more:
        tables = "\n".join(table.html() for table in section.more(found))
        parts.append(f"<details><summary>Every row</summary>{tables}</details>")
    parts += _left_out(found)
    origin = f"python -m benchmarks {section.benchmark}, {found['seconds'] / 60:.0f} minutes: {about(found)}"
    parts.append(f'<p class="origin">{html.escape(origin)}</p>')
    return "\n".join([*parts, "</section>"])


def _left_out(found: dict) -> Iterator[str]:
    lines = [
        f"<li>{html.escape(f'{peer}, {row.name}, {row.group}: {why}')}</li>"
        for row in rows_of(found)
        for peer, why in row.left_out.items()
    ]
    if lines:
        yield f"<details><summary>{len(lines)} left out</summary><ul>{''.join(lines)}</ul></details>"


def page() -> str:
    with tempfile.TemporaryDirectory() as folder:
        sections = [section_html(section, Path(folder)) for section in SECTIONS]
    cards = "".join(f"<div><b>{figure}</b>{html.escape(text)}</div>" for figure, text in headlines())
    links = " · ".join(
        f'<a href="#{s.benchmark}">{s.title}</a>' for s, text in zip(SECTIONS, sections, strict=True) if text
    )
    found = [one for section in SECTIONS if (one := stored(section.benchmark))]
    latest = max(found, key=lambda one: one["date"], default=None)
    where = html.escape(about(latest)) if latest else "nothing has been measured yet"
    return PAGE.substitute(cards=cards, links=links, where=where, sections="\n".join(sections))


def main(arguments: Sequence[str] = ()) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__).parse_args(arguments)
    path = RESULTS / "report.html"
    path.write_text(page(), encoding="utf-8")
    print(f"written: {path}")
