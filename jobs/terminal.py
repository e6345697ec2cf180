"""What a person reads while a job runs: the plan, one progress line a stage, a small table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

PLAIN_EVERY_S = 30.0


class Terminal:
    """Writes to standard output; live lines on a terminal, plain ones in a log file."""

    def __init__(self, console: Console | None = None) -> None:
        # A log file has no width of its own, and rich's 80 columns would cut paths in two.
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 120)

    def say(self, text: str = "") -> None:
        """One line of text (rich markup allowed)."""
        self.console.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that the user should not miss."""
        self.console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table: the first column to the left, the others to the right."""
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", header_style="dim")
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[StageLine]:
        """One line that shows how far a stage is."""
        line = StageLine(self, name, total)
        try:
            with line:
                yield line
        except BaseException:
            line.finish("stopped", style="red")
            raise
        line.finish(line.summary or "done")


class StageLine:
    """The progress line of one stage: live on a terminal, every 30 s elsewhere."""

    def __init__(self, terminal: Terminal, name: str, total: int | None) -> None:
        self._console = terminal.console
        self._name = name
        self._done, self._total = 0, total
        self._start = self._last_plain = time.monotonic()
        self.summary = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn(f"{name:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(name, total=total, note="")

    def __enter__(self) -> StageLine:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """``count`` more are done."""
        self._done += count
        self._progress.update(self._task, advance=count, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain = now
            of = f"/{self._total}" if self._total else ""
            self._console.print(
                f"  {self._name:<10} {self._done}{of}  {now - self._start:.0f} s  {note}", soft_wrap=True
            )

    def extend(self, count: int) -> None:
        """``count`` more are to do."""
        self._total = (self._total or 0) + count
        self._progress.update(self._task, total=self._total)

    def note(self, text: str) -> None:
        """What is going on just now."""
        self._progress.update(self._task, note=text)

    def finish(self, summary: str, style: str = "green") -> None:
        """Leave one plain line behind."""
        seconds = time.monotonic() - self._start
        self._console.print(f"[{style}]{self._name:<10}[/] {seconds:5.0f} s  {escape(summary)}", soft_wrap=True)
