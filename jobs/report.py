"""What came out of a run, for the terminal, for Markdown and for MLflow.

potstill report RUN
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.job import Job, prepare
from jobs.mlflow_server import redact
from jobs.registry import StudentVersion
from jobs.runs import Run
from jobs.terminal import Terminal
from potstill import second_opinion
from potstill.arms import repeats_of
from potstill.config import Config, TrackingConfig, home
from potstill.scores import ClassScores, Difference, Interval, Scores, mean_and_deviation

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
    """Scores by student; ``difference`` is distilled minus ``baseline``, the stronger of the seeds-only two."""

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


def show(config: Config, run: Run | None) -> None:
    """Print the report of a run; without one, of the run that the config names."""
    job = prepare(config, Terminal(), run=run)
    if run is not None and config.search is not None:
        from jobs import search_report  # which shows the winner by what is here
        from jobs.search_table import TrialTable

        search_report.show(job, TrialTable.load(run))
        return
    result = Report.from_json(job.run.read_json("report"))
    print_stages(job)
    print_report(job, result)
    print_classes(job, result)


def print_report(job: Job, result: Report) -> None:
    """The closing table: every student's scores, and what distilling gained."""
    job.terminal.say()
    job.terminal.table(f"{job.task.name}: {len(job.data.test)} test texts", score_columns(result), score_rows(result))
    job.terminal.say()
    job.terminal.say(verdict(result))


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
    return f"{words} ({ROWS[result.baseline]}); {interval}{certainty}"


def print_stages(job: Job) -> None:
    """What generation and relabelling did, from the run's own records."""
    job.terminal.table(f"run {job.run.name}", ["", ""], stage_rows(job))


def stage_rows(job: Job) -> list[tuple[str, str]]:
    """Texts written, dropped and why, the teacher on the seeds, labels changed and from what to what."""
    made, checked = job.run.read_json("generate"), job.run.read_json("relabel")["report"]
    rows = [
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
    if said:
        rows.append(("second opinion", said.removeprefix("second opinion of the ")))
    return rows


def print_classes(job: Job, result: Report) -> None:
    """Scores by class of the distilled student."""
    rows = [
        (one.label, f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", str(one.support))
        for one in result.scores["distilled"].per_class
    ]
    job.terminal.say()
    job.terminal.table("distilled, by class", ["class", "precision", "recall", "F1", "test texts"], rows)


def print_places(job: Job, export: str, version: StudentVersion | None) -> None:
    """Where things are, and what to try next."""
    say = job.terminal.say
    say()
    say(f"student   {export}")
    if version is not None:
        state = "registered now" if version.created else "registered before"
        say(f"registry  {version.alias_uri} (version {version.version}, {state})")
    say(f"run       {job.run.path}")
    say(f"MLflow    {job.tracker.where}")
    new = sum(job.run.read_json(stage)["usage"]["new_requests"] for stage in ("generate", "relabel"))
    say(f"teacher   new requests: {new}")
    say()
    # A name alone is looked for in the default storage.
    run = job.run.name if job.config.storage == str(home() / "runs") else job.run.path
    promote = ""
    if version is not None:
        tracking = job.config.tracking.uri
        standard = tracking == TrackingConfig().uri
        promote = f"   |   potstill promote {version.name}" + (
            "" if standard else f" --tracking-uri {redact(tracking)}"
        )
    say(f"next      potstill report {run}{promote}")


def as_markdown(job: Job, result: Report) -> str:
    """The report as Markdown, for MLflow."""

    def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = [columns, ["---"] * len(columns), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)

    classes = [
        (one.label, f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", str(one.support))
        for one in result.scores["distilled"].per_class
    ]
    return (
        "\n\n".join(
            [
                f"# {job.task.name}: run {result.run}",
                f"{len(job.data.test)} test texts. {verdict(result)}.",
                table(score_columns(result), score_rows(result)),
                "## Texts and labels",
                table(["", ""], stage_rows(job)),
                "## Distilled, by class",
                table(["class", "precision", "recall", "F1", "test texts"], classes),
            ]
        )
        + "\n"
    )
