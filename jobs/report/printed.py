"""The results of a run for the terminal, for Markdown and for MLflow, and its page written to its folder.

potstill report RUN
"""

from __future__ import annotations

from jobs.report import run_page
from jobs.report.content import markdown_table
from jobs.report.render import render
from jobs.report.result import (
    CLASS_COLUMNS,
    PAGE,
    RunReport,
    class_rows,
    paid,
    score_columns,
    score_rows,
    stage_rows,
    tested,
    verdict,
)
from jobs.run.job import Job
from jobs.runtime.progress import format_usd
from jobs.tracking.registry import StudentVersion
from jobs.tracking.server import redact
from potstill.config import TrackingConfig, home
from potstill.measures.annotations import Votes


def write_page(job: Job, result: RunReport, votes: Votes | None = None) -> str:
    """Write the run's ``report.html`` and return its text. Raises ``InputError`` if no vote is about a test text."""
    text = render(run_page.build(job, result, votes))
    job.run.write_text(PAGE, text)
    return text


def print_report(job: Job, result: RunReport) -> None:
    """Print every student's scores and the gain from distilling."""
    job.terminal.say()
    job.terminal.table(f"{job.task.name}: {tested(result)} test texts", score_columns(result), score_rows(result))
    job.terminal.say()
    job.terminal.say(verdict(result))


def print_places(job: Job, export: str, version: StudentVersion | None) -> None:
    """Print where the results are, and the next commands."""
    say = job.terminal.say
    say()
    say(f"student   {export}")
    if version is not None:
        state = "registered now" if version.created else "registered before"
        say(f"registry  {version.alias_uri} (version {version.version}, {state})")
    say(f"run       {job.run.path}")
    say(f"report    {job.run.path}/{PAGE}")
    say(f"MLflow    {job.tracker.where}")
    used = [job.run.read_json(stage)["usage"] for stage in ("generate", "relabel")]
    new, dollars = (sum(one[name] for one in used) for name in ("new_requests", "new_cost_usd"))
    say(f"teacher   new requests: {new}{f', {format_usd(dollars)}' if dollars else ''}; total {paid(job)}")
    say()
    # In the default storage the name is enough.
    run = job.run.name if job.config.storage == str(home() / "runs") else job.run.path
    promote = ""
    if version is not None:
        tracking = job.config.tracking.uri
        # As in the run's config, the password is in PGPASSWORD, ~/.pgpass or MLFLOW_TRACKING_PASSWORD.
        standard = tracking == TrackingConfig().uri
        promote = f"   |   potstill promote {version.name}" + (
            "" if standard else f" --tracking-uri {redact(tracking, mask='')}"
        )
    say(f"next      potstill report {run}{promote}")


def as_markdown(job: Job, result: RunReport) -> str:
    """The report as Markdown, for MLflow."""
    parts = [
        f"# {job.task.name}: run {result.run}",
        f"{tested(result)} test texts. {verdict(result)}.",
        markdown_table(score_columns(result), score_rows(result)),
        "## Texts and labels",
        markdown_table(["", ""], stage_rows(job)),
        "## Distilled, by class",
        markdown_table(CLASS_COLUMNS, class_rows(result.scores["distilled"])),
    ]
    return "\n\n".join(parts) + "\n"
