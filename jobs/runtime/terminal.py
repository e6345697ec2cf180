"""The terminal output of a job: messages, tables, one progress line per stage."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from jobs.runtime.progress import Progress, format_progress

LIVE_EVERY_S, PLAIN_EVERY_S = 0.5, 30.0
WIDE = 140  # wide enough for a full-length bar beside the numbers
AROUND_NUMBERS = 24  # characters of a live line without its bar: spinner, name, clock and the gaps between


class Terminal:
    """Writes to standard output; live lines on a terminal, plain ones in a log file."""

    def __init__(self, console: Console | None = None, plain_every_s: float = PLAIN_EVERY_S) -> None:
        # A log file has no width, and rich's default of 80 columns would break paths.
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        self.plain_every_s = plain_every_s

    def say(self, text: str = "") -> None:
        """One line of text (rich markup allowed)."""
        self.console.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A warning line."""
        self.console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
        """A table. The first ``left`` columns are left-aligned, the others right-aligned."""
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number < left else "right", header_style="dim")
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)

    @contextmanager
    def stage(self, name: str) -> Iterator[StageLine]:
        """A progress line for a stage; prints a summary at the end of the block."""
        line = StageLine(self, name)
        try:
            with line:
                yield line
        except BaseException:
            line.finish("stopped", style="red")
            raise
        line.finish(line.summary or "done")


class StageLine:
    """The progress line of one stage: live on a terminal, every 30 s elsewhere."""

    def __init__(self, terminal: Terminal, name: str) -> None:
        self._console = terminal.console
        self._name = name
        self._start = time.monotonic()
        self.summary = ""
        live = self._console.is_terminal
        self._every_s = LIVE_EVERY_S if live else terminal.plain_every_s
        bar = 30 if self._console.width >= WIDE else 10
        self._room = self._console.width - AROUND_NUMBERS - bar
        self._progress = rich_progress.Progress(
            rich_progress.SpinnerColumn(),
            rich_progress.TextColumn(f"{name:<10}"),
            rich_progress.BarColumn(bar_width=bar),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
            console=self._console,
            transient=True,
            disable=not live,
        )
        self._task = self._progress.add_task(name, total=None, note="")
        self._read: Callable[[], Progress] | None = None
        self._left = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> StageLine:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._left.set()
        if self._ticker.is_alive():
            self._ticker.join()
        self._progress.stop()

    def follow(self, read: Callable[[], Progress]) -> None:
        """Show the numbers of ``read``, which a thread calls at intervals, so that a silent teacher shows."""
        self._read = read
        if not self._ticker.is_alive():
            self._ticker.start()

    def note(self, text: str) -> None:
        """Show a text on the live line."""
        self._progress.update(self._task, note=text)

    def _tick(self) -> None:
        while not self._left.wait(self._every_s):
            if self._read is not None:
                self._show(self._read())

    def _show(self, progress: Progress) -> None:
        if self._console.is_terminal:
            numbers = format_progress(progress, self._room)
            self._progress.update(self._task, completed=progress.done, total=progress.total or None, note=numbers)
        else:
            self._console.print(f"  {self._name:<8}  {format_progress(progress)}", soft_wrap=True)

    def finish(self, summary: str, style: str = "green") -> None:
        """Print the final line."""
        seconds = time.monotonic() - self._start
        self._console.print(f"[{style}]{self._name:<10}[/] {seconds:5.0f} s  {escape(summary)}", soft_wrap=True)
