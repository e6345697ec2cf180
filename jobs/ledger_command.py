"""The ledger's upkeep on the command line. Needs no Ray and works while jobs write.

potstill ledger stats
potstill ledger export answers.parquet
potstill ledger import answers.parquet --ledger postgresql+psycopg://me@host/potstill
potstill ledger prune --older-than 90d --dry-run
potstill ledger verify --ledger postgresql+psycopg://me@host/potstill
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.runtime.terminal import Terminal
from potstill.config import LedgerConfig
from potstill.errors import InputError, Problem

if TYPE_CHECKING:
    from actors.ledger.database import LedgerDatabase
    from actors.ledger.upkeep import Spent

app = typer.Typer(
    no_args_is_help=True, help="The ledger of all answers: spending, export and import, pruning, verification."
)

_UNITS_S = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_VIEWS = ("model", "stage", "task", "day")

Place = Annotated[
    str | None,
    typer.Option(
        "--ledger", metavar="URI", help="URI or file, as in a config's ledger.uri; default: the standard ledger"
    ),
]


@app.command()
def stats(
    ledger: Place = None, as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False
) -> None:
    """Answers, tokens and dollars by model, stage, task and day."""
    from actors.ledger import upkeep as ledger_upkeep

    with _opened(ledger) as database:
        spent, size = ledger_upkeep.spent(database), ledger_upkeep.size_bytes(database)
        shown = database.shown
    views = {view: _summed(spent, view) for view in _VIEWS}
    total = _total(spent)
    if as_json:
        print(json.dumps({"ledger": shown, "bytes": size, **total, **{f"by_{v}": rows for v, rows in views.items()}}))
        return
    terminal = Terminal()
    terminal.say(f"{shown}: {total['answers']:,} answers, ${total['cost_usd']:,.2f}, {size / 2**20:,.1f} MiB")
    for view, rows in views.items():
        if rows:
            terminal.say()
            terminal.table("", [view, "answers", "prompt tokens", "completion tokens", "cost"], list(map(_cells, rows)))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.parquet", help="Parquet file to write; must not exist")],
    ledger: Place = None,
) -> None:
    """Write all answers with their requests to one Parquet file."""
    from actors.ledger import upkeep as ledger_upkeep

    if file.exists():
        raise InputError([Problem(f"FILE = {str(file)!r}", "already exists; name another file, or delete it")])
    with _opened(ledger) as database:
        try:
            count = ledger_upkeep.export(database, file)
        except OSError as error:
            # Arrow puts its own lines around the system's message.
            reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
            problem = f"can't be written: {reason}; name a file in a folder that you can write to"
            raise InputError([Problem(f"FILE = {str(file)!r}", problem)]) from error
    Terminal().say(f"{count:,} answers in {file} ({file.stat().st_size / 2**20:,.1f} MiB)")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.parquet", help="a file that `potstill ledger export` wrote")],
    ledger: Place = None,
) -> None:
    """Import the answers of an exported file. Stored answers stay. Creates the ledger if there is none."""
    from actors.ledger import upkeep as ledger_upkeep
    from actors.ledger.store import LedgerStore

    store = LedgerStore(_uri(ledger))
    try:
        count, new = ledger_upkeep.restore(store, file)
        shown = store.database.shown
    finally:
        store.close()
    Terminal().say(f"{shown}: {new:,} of the {count:,} answers in {file} were new")


@app.command()
def prune(
    older_than: Annotated[str, typer.Option(metavar="AGE", help="such as 90d (days), 12h (hours) or 8w (weeks)")],
    ledger: Place = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be deleted")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="delete without asking")] = False,
) -> None:
    """Delete answers by age and release their space. A job that needs them again pays again."""
    from actors.ledger import upkeep as ledger_upkeep

    before = time.time() - _seconds(older_than)
    terminal = Terminal()
    with _opened(ledger) as database:
        old = ledger_upkeep.count_older(database, before)
        terminal.say(f"{old.answers:,} answers that cost ${old.cost_usd:,.2f} are older than {older_than}")
        if dry_run or not (old.answers or old.claims):
            return
        if old.answers and not yes:
            _ask()
        size = ledger_upkeep.size_bytes(database)
        gone = ledger_upkeep.prune(database, before)
        ledger_upkeep.reclaim(database)
        left = ledger_upkeep.size_bytes(database)
    claims = f" and {gone.claims:,} claims of dead jobs" if gone.claims else ""
    terminal.say(
        f"deleted {gone.answers:,} answers that cost ${gone.cost_usd:,.2f}{claims}; "
        f"the ledger has {left / 2**20:,.1f} MiB, it had {size / 2**20:,.1f}"
    )


@app.command()
def verify(ledger: Place = None) -> None:
    """Check the file and every answer. Prints a line per fault; then the exit code is 1."""
    from actors.ledger import upkeep as ledger_upkeep

    with _opened(ledger) as database:
        findings = ledger_upkeep.verify(database)
        answers = sum(spent.answers for spent in ledger_upkeep.spent(database))
        shown = database.shown
    for finding in findings:
        print(f"ledger.uri = {shown!r}: {finding}", file=sys.stderr)
    if findings:
        raise typer.Exit(1)
    Terminal().say(f"{shown}: {answers:,} answers, no faults")


@contextmanager
def _opened(place: str | None) -> Iterator[LedgerDatabase]:
    """An existing ledger."""
    from actors.ledger.database import LedgerDatabase

    database = LedgerDatabase(_uri(place), create=False)
    try:
        yield database
    finally:
        database.close()


def _uri(place: str | None) -> str:
    """The ledger's URI. A place without ``://`` is an SQLite file."""
    uri = place or ""
    if uri and "://" not in uri:
        uri = f"sqlite:///{Path(uri).expanduser().absolute()}"
    return LedgerConfig(uri=uri).uri


def _seconds(age: str) -> float:
    found = re.fullmatch(r"(\d+)([hdw])", age.strip())
    if found is None:
        raise InputError([Problem(f"--older-than = {age!r}", "is not an age; give one such as 90d, 12h or 8w")])
    return int(found[1]) * _UNITS_S[found[2]]


def _ask() -> None:
    if not sys.stdin.isatty():
        raise InputError([Problem("--yes", "is needed without a terminal; nothing was deleted")])
    typer.confirm("Delete them?", abort=True)


def _summed(spent: Sequence[Spent], view: str) -> list[dict[str, str | int | float]]:
    groups: dict[str, list[Spent]] = {}
    for one in spent:
        groups.setdefault(getattr(one, view), []).append(one)
    return [{view: name, **_total(groups[name])} for name in sorted(groups)]


def _total(spent: Sequence[Spent]) -> dict[str, int | float]:
    return {
        "answers": sum(one.answers for one in spent),
        "prompt_tokens": sum(one.prompt_tokens for one in spent),
        "completion_tokens": sum(one.completion_tokens for one in spent),
        "cost_usd": sum(one.cost_usd for one in spent),
    }


def _cells(row: dict[str, str | int | float]) -> list[str]:
    name, answers, prompt, completion, cost = row.values()
    return [str(name), f"{answers:,}", f"{prompt:,}", f"{completion:,}", f"${cost:,.2f}"]
