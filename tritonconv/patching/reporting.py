"""What `patch` did to each site of a model, as a table for people and as JSON for programs."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Status = Literal["fused", "swapped", "left"]

# What each status means for what runs.
_MEANING: dict[Status, str] = {
    "fused": "one kernel for the pattern",
    "swapped": "a kernel of its own",
    "left": "torch's own code",
}


@dataclass(frozen=True)
class Site:
    """One convolution, pooling or dropout call.

    fqn: fully qualified name of the module, or of the calling module and the call (`decoder.max_pool2d`).
    pattern: `conv2d`, `conv2d+relu` or the name of a pooling function, such as `max_pool2d`; a module's class where no
        kernel is known.
    members: fully qualified names of the modules the pattern covers.
    reason: why it is not (or not further) fused, and what it is in training if that differs from evaluation, of which
        the rest says; empty if there is nothing to say.
    """

    fqn: str
    pattern: str
    status: Status
    reason: str = ""
    members: tuple[str, ...] = ()


class Printable:
    """What has a `__rich__` prints it, on 120 columns."""

    def __str__(self) -> str:
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


@dataclass(frozen=True)
class Report(Printable):
    """Every site of the model `name`, and the rest: norms and activations that are in none, which torch runs. In module
    order. Prints as a table."""

    name: str
    sites: tuple[Site, ...]
    rest: tuple[Site, ...] = ()

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __rich__(self) -> Table:
        counts = Counter(site.status for site in self.sites)
        counted = [f"{counts[status]} {status}: {meaning}" for status, meaning in _MEANING.items()]
        if self.rest:
            counted.append(f"{len(self.rest)} norms and activations by themselves: torch's own code")
        caption = "\n".join(counted)
        table = Table(title=f"tritonconv: {self.name}, {len(self)} sites", caption=caption)
        for heading in ("site", "pattern", "status", "reason"):
            table.add_column(heading, overflow="fold")
        for sites in (self.sites, self.rest):
            for site in sites:
                table.add_row(escape(site.fqn or "(model)"), site.pattern, site.status, escape(site.reason))
            table.add_section()
        return table

    def to_json(self) -> str:
        """A JSON object {"model": name, "sites": [{fqn, pattern, status, reason, members}, …], "rest": [as sites]}."""
        sites, rest = ([asdict(site) for site in sites] for sites in (self.sites, self.rest))
        return json.dumps({"model": self.name, "sites": sites, "rest": rest}, indent=2)
