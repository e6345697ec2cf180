"""`potstill report`: print a finished run, search or study, write its page and open that."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.markup import escape

from jobs.report.printed import print_report, write_page
from jobs.report.result import CLASS_COLUMNS, PAGE, RunReport, class_rows, stage_rows
from jobs.run.folder import Run
from jobs.run.job import Job, prepare
from jobs.runtime.terminal import Terminal
from jobs.search import report as search_report
from jobs.search.table import TrialTable
from jobs.study import page as study_page
from jobs.study import report as study_report
from jobs.tracking.tracker import NullTracker
from potstill.config import Config, home
from potstill.errors import InputError, Problem
from potstill.measures.annotations import read_annotations, read_rows
from potstill.study.tables import read_study
from potstill.task import Task, TaskData, find, read


def show(config: Config, run: Run | None, annotations: str | None = None, open_it: bool = True) -> None:
    """Print the report of ``run`` (default: the run of the config) and open its page.

    ``annotations``: a file of votes on the test texts (``potstill.measures.annotations``) for which the page is written
    again. This reads the task's data, and so does a config without a run. Raises ``InputError`` if the run has no report
    or the votes are invalid.
    """
    if run is not None and config.search is not None:
        search_report.show(prepare(config, Terminal(), run=run), TrialTable.load(run))
        return
    job = prepare(config, Terminal(), run=run) if run is None or annotations else _of_run(config, run)
    data = job.run.find_json("report")
    if data is None:
        message = "has no report yet; `potstill distill CONFIG` continues it"
        raise InputError([Problem(f"run {job.run.path}", message)])
    result = RunReport.from_json(data)
    votes = None
    if annotations is not None:
        votes = read_annotations(read_rows(annotations), job.labels, annotations)
    if votes is not None or not job.run.has_file(PAGE):
        write_page(job, result, votes)
    job.terminal.table(f"run {job.run.name}", ["", ""], stage_rows(job))
    print_report(job, result)
    job.terminal.say()
    job.terminal.table("distilled, by class", CLASS_COLUMNS, class_rows(result.scores["distilled"]))
    _show_page(job.run, job.terminal, open_it)


def find_study(reference: str) -> Run | None:
    """The folder of the study with that path or name; ``None`` if there is none."""
    return Run.holding("study.json", reference, str(home() / "runs"))


def show_study(run: Run, open_it: bool = True) -> None:
    """Print the tables of a study, write its page and open it."""
    terminal = Terminal()
    study_page.write(run)
    study_report.print_tables(terminal, *read_study(run.path))
    _show_page(run, terminal, open_it)


def _show_page(run: Run, terminal: Terminal, open_it: bool) -> None:
    """Print the path of the page, and open it in the browser if asked."""
    page = f"{run.path}/{PAGE}"
    terminal.say()
    terminal.say(f"page      {escape(page)}")
    if open_it:
        open_page(page)


def open_page(path: str) -> None:
    """Open a page in the browser, but not from a log file or over SSH."""
    interactive = sys.stdout.isatty() and (
        sys.platform != "linux" or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}
    )
    if "://" not in path and interactive:
        import webbrowser

        webbrowser.open(Path(path).absolute().as_uri())


def _of_run(config: Config, run: Run) -> Job:
    """The job of a run without its data, which may be gone. The task comes from the run's copy, since its file may be gone
    too, with the working folder of a submitted job."""
    stored = run.find_json("task")
    task = read(find(config.task.preset)) if stored is None else Task.model_validate(stored)
    return Job(config, task, TaskData((), (), (), ()), run, Terminal(), NullTracker())
