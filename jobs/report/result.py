"""What came out of a run: scores of every student, and the rows and sentences that tables and pages show of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.run.job import Job
from jobs.runtime.progress import format_usd
from potstill.measures.scores import ClassScores, Difference, Interval, Scores, mean_and_deviation
from potstill.student import second_opinion
from potstill.student.arms import repeats_of

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
class RunReport:
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
    def from_json(cls, data: Mapping[str, Any]) -> RunReport:
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


def tested(result: RunReport) -> int:
    """On how many texts the students were scored."""
    return result.scores["distilled"].texts


def score_columns(result: RunReport) -> list[str]:
    """The headings of ``score_rows``."""
    seeds = max(len(repeats_of(name, result.scores)) for name in result.scores)
    return ["student", "macro-F1", "accuracy", *([f"macro-F1 over {seeds} training seeds"] if seeds > 1 else [])]


def score_rows(result: RunReport) -> list[tuple[str, ...]]:
    """One row a student: name, macro-F1 with its 95 % interval, accuracy; with repeats, the mean and deviation of theirs."""
    repeated = len(score_columns(result)) > 3
    rows = []
    for name, label in ROWS.items():
        if name in result.scores:
            row = [label, str(result.scores[name].macro_f1), f"{result.scores[name].accuracy.value:.3f}"]
            rows.append((*row, _repeated(result, name)) if repeated else tuple(row))
    return rows


def over_repeats(result: RunReport, name: str) -> tuple[float, float]:
    """Mean and sample standard deviation of a student's macro-F1 over its training seeds."""
    return mean_and_deviation([result.scores[one].macro_f1.value for one in repeats_of(name, result.scores)])


def gain_over_repeats(result: RunReport) -> tuple[float, float]:
    """Mean and sample standard deviation of the gain in macro-F1 over the baseline of the same training seed."""
    ours, theirs = (
        [result.scores[one].macro_f1.value for one in repeats_of(name, result.scores)]
        for name in ("distilled", result.baseline)
    )
    # The regression has no training seed.
    return mean_and_deviation(
        [a - b for a, b in zip(ours, theirs * len(ours) if len(theirs) == 1 else theirs, strict=True)]
    )


def _repeated(result: RunReport, name: str) -> str:
    if len(repeats_of(name, result.scores)) == 1:
        return ""  # the regression has no training seed
    mean, deviation = over_repeats(result, name)
    return f"{mean:.3f} ± {deviation:.3f}"


def verdict(result: RunReport) -> str:
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
    distilled = job.run.read_json("finetune")["distilled"]
    words = second_opinion.in_words(distilled.get("anchor_weight", distilled.get("say")))  # older runs: "say"
    if job.config.student.early_stopping:
        rows.append(("early stopping", "by real validation texts: the students have seen more labels than the seeds'"))
    if words:
        rows.append(("second opinion", words.removeprefix("second opinion of the ")))
    return rows


def paid(job: Job) -> str:
    """What the teacher's answers took, whichever run of this job asked for them."""
    used = [job.run.read_json(stage)["usage"] for stage in ("generate", "relabel")]
    requests = sum(one["requests"] for one in used)
    tokens = sum(one["prompt_tokens"] + one["completion_tokens"] for one in used)
    dollars = sum(one.get("cost_usd", one["new_cost_usd"]) for one in used)  # runs of older versions have none
    return f"{requests:,} requests, {tokens:,} tokens" + (f", {format_usd(dollars)}" if dollars else "")


_CLASS_COLUMNS = ("class", "precision", "recall", "F1", "test texts")


def class_rows(result: RunReport) -> list[tuple[str, ...]]:
    """One row a class of the distilled student: name, precision, recall, F1, test texts."""
    return [
        (one.label, f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", str(one.support))
        for one in result.scores["distilled"].per_class
    ]
