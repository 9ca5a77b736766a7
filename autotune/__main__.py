"""`python -m autotune COMMAND`: looks after the store of tuned configurations."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import files, pictures, quality, store
from .session import describe


def _list(arguments) -> None:
    found = files.matching(arguments.where)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    title = f"{len(found)} entries in {store.directory()}"
    table = Table("problem", "chosen", "ms", "how", "device", "date", title=title)
    for entry in found:
        about = entry["provenance"]
        seconds = quality.seconds_of(entry)
        ms = "" if seconds is None else f"{1e3 * seconds:.3f}"
        facts = (str(about.get(fact, "")) for fact in ("how", "device", "date"))
        table.add_row(describe(entry["key"]), describe(entry["config"]), ms, *facts)
    Console().print(table)
    for path, reason in files.unusable():
        print(f"{path} cannot be used: {reason}")


def _export(arguments) -> None:
    entries = files.matching(arguments.where)
    files.export(arguments.file, entries, arguments.brief)
    print(f"{len(entries)} entries written to {arguments.file}")


def _import(arguments) -> None:
    store.check_writable()
    changes = files.changes(arguments.file)
    for entry in changes.to_take:
        store.write(entry)
    print(f"{len(changes.new)} new, {len(changes.newer)} replaced, {len(changes.kept)} kept as they were")


def _diff(arguments) -> None:
    changes = files.changes(arguments.file)
    for mark, entries in (("+", changes.new), (">", changes.newer), ("<", changes.kept)):
        for entry in entries:
            mine = store.entry_of(entry["key"])
            if mine is None or mine["config"] != entry["config"]:
                was = "" if mine is None else f"{describe(mine['config'])} here, "
                print(f"{mark} {describe(entry['key'])}: {was}{describe(entry['config'])} there")
    for entry in changes.missing:
        print(f"- {describe(entry['key'])}: {describe(entry['config'])} here only")


def _prune(arguments) -> None:
    doomed = files.prunable(arguments.where, arguments.before)
    for path, why in doomed:
        print(f"{'would remove' if arguments.dry_run else 'removing'} {path.name}: {why}")
        if not arguments.dry_run:
            path.unlink(missing_ok=True)
    store.forget()
    print(f"{len(doomed)} entries")


def _quality(arguments) -> None:
    Console().print(quality.table(files.matching(arguments.where)))


def _picture(arguments) -> None:
    for path in pictures.draw(files.matching(arguments.where), arguments.out):
        print(path)


COMMANDS = {
    "list": (_list, "what is stored"),
    "export": (_export, "write entries to one file"),
    "import": (_import, "take in the entries of a file: new ones, and those measured later than what is here"),
    "diff": (_diff, "compare the store with a file: + only there, > newer there, < older there, - only here"),
    "prune": (_prune, "remove entries that cannot be used, and those that --where or --before select"),
    "quality": (_quality, "how good predictions were, of what was measured"),
    "picture": (_picture, "draw time by configuration, and predicted against measured, as PNG"),
}


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected FIELD=VALUE, such as op=fprop; got {text!r}")
    return name, value


def _date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a date such as 2026-01-31; got {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m autotune", description=__doc__.partition(": ")[2].capitalize())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    made: Mapping[str, argparse.ArgumentParser] = {}
    for name, (function, text) in COMMANDS.items():
        made[name] = commands.add_parser(name, help=text, description=text)
        made[name].set_defaults(function=function)
    for name in ("export", "import", "diff"):
        made[name].add_argument("file", type=Path, metavar="FILE")
    for name in ("list", "export", "prune", "quality", "picture"):
        made[name].add_argument(
            "--where", type=_condition, action="append", default=[], metavar="FIELD=VALUE",
            help="only entries whose key or provenance has this value; may be repeated",
        )  # fmt: skip
    made["export"].add_argument("--brief", action="store_true", help="without what was tried for each entry")
    made["list"].add_argument("--json", action="store_true", help="whole entries, as JSON")
    made["prune"].add_argument(
        "--before", type=_date, metavar="DATE", help="only entries found before this date, YYYY-MM-DD"
    )
    made["prune"].add_argument("--dry-run", action="store_true", help="only say what would go")
    made["picture"].add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="where to (default: here)")
    return parser


def main() -> int:
    arguments = _parser().parse_args()
    try:
        arguments.function(arguments)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
