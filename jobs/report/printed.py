"""What came out of a run, for the terminal, for Markdown and for MLflow; ``jobs/page`` makes a page of it.

potstill report RUN
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from rich.markup import escape

from jobs.run.folder import Run
from jobs.run.job import Job, prepare
from jobs.runtime.progress import format_usd
from jobs.runtime.terminal import Terminal
from jobs.tracking.registry import StudentVersion
from jobs.tracking.server import redact
from jobs.tracking.tracker import NullTracker
from potstill.config import Config, TrackingConfig, home
from potstill.errors import InputError, Problem
from potstill.measures.annotations import Votes, read_annotations, read_rows
from potstill.measures.scores import ClassScores, Difference, Interval, Scores, mean_and_deviation
from potstill.student import second_opinion
from potstill.student.arms import repeats_of
from potstill.task import Task, TaskData, find, read

PAGE = "report.html"
SHOWN_CHANGES = 5  # the commonest changes of label
ROWS = {
    "seeds_only": "seeds only, fine-tuned",
    "seeds_regression": "seeds only, regression on embeddings",
    "generated": "generated, not relabelled",
    "distilled": "distilled",
    "real_equal": "as many real texts",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Scores by student; ``difference`` is distilled minus ``baseline``, the stronger of the seeds-only two, both of
    the first training seed."""

    run: str
    scores: Mapping[str, Scores]
    baseline: str
    difference: Difference

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data; ``from_json`` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """A report that a run's ``report.json`` holds."""
        difference = data["difference"]
        return cls(
            data["run"],
            {name: _scores(scores) for name, scores in data["scores"].items()},
            data["baseline"],
            Difference(Interval(**difference["accuracy"]), Interval(**difference["macro_f1"]), difference["p_value"]),
        )


def _scores(data: Mapping[str, Any]) -> Scores:
    return Scores(
        **{
            **data,
            "accuracy": Interval(**data["accuracy"]),
            "macro_f1": Interval(**data["macro_f1"]),
            "per_class": tuple(ClassScores(**one) for one in data["per_class"]),
            "confusion": tuple(tuple(row) for row in data["confusion"]),
        }
    )


def show(config: Config, run: Run | None, annotations: str | None = None, open_it: bool = True) -> None:
    """Print the report of a run, and open its page; without one, of the run that the config names.

    ``annotations``: a file of people's votes on the test texts (``potstill.measures.annotations``), for which the page is
    written anew. That takes reading the task's data, and so does a config in the place of a run. Raises ``InputError`` where
    the run has no report, or the votes can't be used.
    """
    if run is not None and config.search is not None:
        from jobs.search import report as search_report  # which shows the winner by what is here
        from jobs.search.table import TrialTable

        search_report.show(prepare(config, Terminal(), run=run), TrialTable.load(run))
        return
    job = prepare(config, Terminal(), run=run) if run is None or annotations else _of_run(config, run)
    try:
        result = Report.from_json(job.run.read_json("report"))
    except InputError:
        message = "has no report yet; `potstill distill CONFIG` goes on with it"
        raise InputError([Problem(f"run {job.run.path}", message)]) from None
    votes = None
    if annotations is not None:
        votes = read_annotations(read_rows(annotations), job.labels, annotations)
    if votes is not None or not job.run.has_file(PAGE):
        write_page(job, result, votes)
    print_stages(job)
    print_report(job, result)
    print_classes(job, result)
    job.terminal.say()
    page = f"{job.run.path}/{PAGE}"
    job.terminal.say(f"page      {escape(page)}")
    if open_it:
        open_page(page)


def find_study(reference: str) -> Run | None:
    """The folder of the study that a path or a name means; ``None`` if it means none."""
    for place in (reference.rstrip("/"), f"{home()}/runs/{reference}"):
        filesystem, root = url_to_fs(place)
        if filesystem.isfile(f"{root}/study.json"):
            return Run(*place.rsplit("/", 1)) if "://" in place else Run(*root.rsplit("/", 1))
    return None


def show_study(run: Run, open_it: bool = True) -> None:
    """Print the tables of a study, write its page, and open that."""
    from jobs.study import page as study_page
    from jobs.study import report as study_report
    from potstill.study.tables import read_study

    terminal = Terminal()
    study_page.write(run)
    study_report.print_tables(terminal, *read_study(run.path))
    page = f"{run.path}/{PAGE}"
    terminal.say()
    terminal.say(f"page      {escape(page)}")
    if open_it:
        open_page(page)


def write_page(job: Job, result: Report, votes: Votes | None = None) -> str:
    """Write the run's ``report.html``; its text. Raises ``InputError`` where no vote is about a test text."""
    from jobs.report import run_page
    from jobs.report.render import render

    text = render(run_page.build(job, result, votes))
    job.run.write_text(PAGE, text)
    return text


def open_page(path: str) -> None:
    """Show a page in the browser of whoever sits before a terminal; in a log file or over SSH there is nobody."""
    sits_here = sys.stdout.isatty() and (sys.platform != "linux" or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"})
    if "://" not in path and sits_here:
        import webbrowser

        webbrowser.open(Path(path).absolute().as_uri())


def _of_run(config: Config, run: Run) -> Job:
    """The job of a run as far as its report needs it. The data may be gone, or the hub where it is down; so may the
    task's file, with the working folder of a submitted job, but the run has a copy."""
    task = Task.model_validate(run.read_json("task")) if run.has_file("task.json") else read(find(config.task.preset))
    return Job(config, task, TaskData((), (), (), ()), run, Terminal(), NullTracker())


def print_report(job: Job, result: Report) -> None:
    """The closing table: every student's scores, and what distilling gained."""
    job.terminal.say()
    job.terminal.table(f"{job.task.name}: {tested(result)} test texts", score_columns(result), score_rows(result))
    job.terminal.say()
    job.terminal.say(verdict(result))


def tested(result: Report) -> int:
    """On how many texts the students were scored."""
    return result.scores["distilled"].texts


def score_columns(result: Report) -> list[str]:
    """The headings of ``score_rows``."""
    seeds = max(len(repeats_of(name, result.scores)) for name in result.scores)
    return ["student", "macro-F1", "accuracy", *([f"macro-F1 over {seeds} training seeds"] if seeds > 1 else [])]


def score_rows(result: Report) -> list[tuple[str, ...]]:
    """One row a student: name, macro-F1 with its 95 % interval, accuracy; with repeats, the mean and deviation of theirs."""
    repeated = len(score_columns(result)) > 3
    rows = []
    for name, label in ROWS.items():
        if name in result.scores:
            row = [label, str(result.scores[name].macro_f1), f"{result.scores[name].accuracy.value:.3f}"]
            rows.append((*row, _repeated(result, name)) if repeated else tuple(row))
    return rows


def over_repeats(result: Report, name: str) -> tuple[float, float]:
    """Mean and sample standard deviation of a student's macro-F1 over its training seeds."""
    return mean_and_deviation([result.scores[one].macro_f1.value for one in repeats_of(name, result.scores)])


def gain_over_repeats(result: Report) -> tuple[float, float]:
    """Mean and sample standard deviation of the gain in macro-F1 over the baseline of the same training seed."""
    ours, theirs = (
        [result.scores[one].macro_f1.value for one in repeats_of(name, result.scores)]
        for name in ("distilled", result.baseline)
    )
    # The regression has no training seed.
    return mean_and_deviation(
        [a - b for a, b in zip(ours, theirs * len(ours) if len(theirs) == 1 else theirs, strict=True)]
    )


def _repeated(result: Report, name: str) -> str:
    if len(repeats_of(name, result.scores)) == 1:
        return ""  # the regression has no training seed
    mean, deviation = over_repeats(result, name)
    return f"{mean:.3f} ± {deviation:.3f}"


def verdict(result: Report) -> str:
    """The difference to the stronger baseline in words."""
    gain = result.difference.macro_f1
    sure = "more" if gain.low > 0 else "less" if gain.high < 0 else None
    words = (
        f"distilled is {abs(gain.value):.3f} macro-F1 {'above' if gain.value >= 0 else 'below'} the stronger baseline"
    )
    interval = f"95 % interval of the difference [{gain.low:+.3f}, {gain.high:+.3f}]"
    certainty = "" if sure else "; the interval holds 0, so it may be chance"
    pairs = f"McNemar's exact test of accuracy: p = {result.difference.p_value:.3f}"
    first = f"{words} ({ROWS[result.baseline]}); {interval}{certainty} ({pairs})"
    seeds = len(repeats_of("distilled", result.scores))
    if seeds <= 1:
        return first
    mean, deviation = gain_over_repeats(result)
    return f"over {seeds} training seeds distilling gains {mean:+.3f} ± {deviation:.3f} macro-F1; of the first, {first}"


def print_stages(job: Job) -> None:
    """What generation and relabelling did, from the run's own records."""
    job.terminal.table(f"run {job.run.name}", ["", ""], stage_rows(job))


def stage_rows(job: Job) -> list[tuple[str, str]]:
    """Texts written, dropped and why, the teacher on the seeds, labels changed and from what to what."""
    made, checked = job.run.read_json("generate"), job.run.read_json("relabel")["report"]
    rows = [
        ("teacher", paid(job)),
        ("texts written", f"{made['texts']} in {made['usage']['requests']} replies, {made['rounds']} round(s)"),
        *((f"dropped: {reason}", str(count)) for reason, count in made["dropped"].items()),
        (f"dropped: {checked['dropped_because']}", str(checked["texts"] - checked["kept"])),
        ("texts kept", ", ".join(f"{label} {count}" for label, count in checked["kept_per_class"])),
    ]
    if checked["seed_accuracy"] is not None:
        rows.append(("teacher right on seeds", f"{checked['seed_accuracy']:.0%} (chance {checked['seed_chance']:.0%})"))
        rows.append(("guard", f"{checked['guard']} (from a confidence of {checked['min_confidence']:.2f})"))
        rows.append(("teacher contradicts target", f"{checked['share_contradicted']:.0%} of the texts"))
    rows.append(
        (
            "labels changed",
            f"{checked['share_changed']:.0%} of the texts, {checked['share_applied']:.0%} of the changes wanted",
        )
    )
    rows += [(f"  {source} -> {target}", str(count)) for source, target, count in checked["changes"][:SHOWN_CHANGES]]
    if checked.get("description_agreement") is not None:  # runs of older versions have none
        agreement = f"agree with the others at kappa {checked['description_agreement']:.2f}"
        rows.append(("class descriptions", f"weight {checked['description_weight']:.2f} ({agreement})"))
    said = second_opinion.in_words(job.run.read_json("finetune")["distilled"]["say"])
    if job.config.student.early_stopping:
        rows.append(("early stopping", "by real validation texts: the students have seen more labels than the seeds'"))
    if said:
        rows.append(("second opinion", said.removeprefix("second opinion of the ")))
    return rows


def paid(job: Job) -> str:
    """What the teacher's answers took, whichever run of this job asked for them."""
    used = [job.run.read_json(stage)["usage"] for stage in ("generate", "relabel")]
    requests = sum(one["requests"] for one in used)
    tokens = sum(one["prompt_tokens"] + one["completion_tokens"] for one in used)
    dollars = sum(one.get("cost_usd", one["new_cost_usd"]) for one in used)  # runs of older versions have none
    return f"{requests:,} requests, {tokens:,} tokens" + (f", {format_usd(dollars)}" if dollars else "")


_CLASS_COLUMNS = ("class", "precision", "recall", "F1", "test texts")


def print_classes(job: Job, result: Report) -> None:
    """Scores by class of the distilled student."""
    job.terminal.say()
    job.terminal.table("distilled, by class", list(_CLASS_COLUMNS), class_rows(result))


def class_rows(result: Report) -> list[tuple[str, ...]]:
    """One row a class of the distilled student: name, precision, recall, F1, test texts."""
    return [
        (one.label, f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", str(one.support))
        for one in result.scores["distilled"].per_class
    ]


def print_places(job: Job, export: str, version: StudentVersion | None) -> None:
    """Where things are, and what to try next."""
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
    say(f"teacher   new requests: {new}{f', {format_usd(dollars)}' if dollars else ''}; in all {paid(job)}")
    say()
    # A name alone is looked for in the default storage.
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


def as_markdown(job: Job, result: Report) -> str:
    """The report as Markdown, for MLflow."""

    def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = [columns, ["---"] * len(columns), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)

    return (
        "\n\n".join(
            [
                f"# {job.task.name}: run {result.run}",
                f"{tested(result)} test texts. {verdict(result)}.",
                table(score_columns(result), score_rows(result)),
                "## Texts and labels",
                table(["", ""], stage_rows(job)),
                "## Distilled, by class",
                table(_CLASS_COLUMNS, class_rows(result)),
            ]
        )
        + "\n"
    )
