"""The results of a run: every student's scores, and the table rows and sentences about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from jobs.run.job import Job
from jobs.runtime.progress import format_usd
from potstill.measures.scores import Difference, Scores, mean_and_deviation
from potstill.student import second_opinion
from potstill.student.arms import repeats_of

PAGE = "report.html"
SHOWN_CHANGES = 5  # most frequent label changes

ROWS = {
    "seeds_only": "seeds, fine-tuned",
    "seeds_regression": "seeds, regression on embeddings",
    "described_regression": "seeds and descriptions, regression",
    "start": "seeds and descriptions, contrastive",
    "self_trained": "self-trained on the unlabelled texts",
    "generated": "generated, not relabelled",
    "teacher": "the teacher itself",
    "distilled": "distilled",
    "real_equal": "as many real texts",
}


@dataclass(frozen=True, slots=True)
class RunReport:
    """Scores by student. ``difference``: distilled minus ``baseline``, the strongest student that costs no teacher; both
    with the first training seed."""

    run: str
    scores: Mapping[str, Scores]
    baseline: str
    difference: Difference

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunReport:
        """The report in a run's ``report.json``."""
        return TypeAdapter(cls).validate_python(data)


def tested(result: RunReport) -> int:
    """The number of test texts."""
    return result.scores["distilled"].texts


def title(result: RunReport, name: str) -> str:
    """What a student is called, and on how many texts it was tested if not on all."""
    texts = result.scores[name].texts
    return ROWS[name] + (f" ({texts} of the test texts)" if texts < tested(result) else "")


def score_columns(result: RunReport) -> list[str]:
    """Column names of ``score_rows``."""
    seeds = max(len(repeats_of(name, result.scores)) for name in result.scores)
    return ["student", "macro-F1", "accuracy", *([f"macro-F1 over {seeds} training seeds"] if seeds > 1 else [])]


def score_rows(result: RunReport) -> list[tuple[str, ...]]:
    """One row per student: name, macro-F1 with its 95 % interval, accuracy; with repeats also mean and deviation."""
    repeated = len(score_columns(result)) > 3
    rows = []
    for name in ROWS:
        if name in result.scores:
            row = [title(result, name), str(result.scores[name].macro_f1), f"{result.scores[name].accuracy.value:.3f}"]
            rows.append((*row, _repeated(result, name)) if repeated else tuple(row))
    return rows


def over_repeats(result: RunReport, name: str) -> tuple[float, float]:
    """Mean and sample standard deviation of a student's macro-F1 over its training seeds."""
    return mean_and_deviation([result.scores[one].macro_f1.value for one in repeats_of(name, result.scores)])


def gain_over_repeats(result: RunReport) -> tuple[float, float]:
    """Mean and sample standard deviation of the gain over the baseline with the same training seed, in macro-F1."""
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
    """A sentence on the difference to the strongest baseline."""
    gain = result.difference.macro_f1
    words = f"distilled is {abs(gain.value):.3f} macro-F1 {'above' if gain.value >= 0 else 'below'} the strongest free baseline"
    interval = f"95 % interval of the difference [{gain.low:+.3f}, {gain.high:+.3f}]"
    certainty = "" if gain.low > 0 or gain.high < 0 else ", no significant difference"
    pairs = f"McNemar's exact test of accuracy: p = {result.difference.p_value:.3f}"
    first = f"{words} ({ROWS[result.baseline]}); {interval}{certainty} ({pairs})"
    seeds = len(repeats_of("distilled", result.scores))
    if seeds <= 1:
        return first
    mean, deviation = gain_over_repeats(result)
    return f"over {seeds} training seeds distilling gains {mean:+.3f} ± {deviation:.3f} macro-F1; with the first seed, {first}"


def stage_rows(job: Job) -> list[tuple[str, str]]:
    """Texts written, dropped (with reasons) and kept, the teacher's accuracy on the seeds, label changes."""
    made, checked = job.run.read_json("generate"), job.run.read_json("relabel")["report"]
    rows = [
        ("teacher", paid(job)),
        ("texts written", f"{made['texts']} in {made['usage']['requests']} replies, {made['rounds']} round(s)"),
        *((f"dropped: {reason}", str(count)) for reason, count in made["dropped"].items()),
        (f"dropped: {checked['dropped_because']}", str(checked["texts"] - checked["kept"])),
        ("texts kept", ", ".join(f"{label} {count}" for label, count in checked["kept_per_class"])),
    ]
    if checked["seed_accuracy"] is not None:
        rows.append(
            ("teacher accuracy on seeds", f"{checked['seed_accuracy']:.0%} (chance {checked['seed_chance']:.0%})")
        )
        rows.append(("guard", f"{checked['guard']} (minimum confidence {checked['min_confidence']:.2f})"))
        rows.append(("teacher contradicts target", f"{checked['share_contradicted']:.0%} of the texts"))
    rows.append(
        (
            "labels changed",
            f"{checked['share_changed']:.0%} of the texts, {checked['share_applied']:.0%} of the proposed changes",
        )
    )
    rows += [(f"  {source} -> {target}", str(count)) for source, target, count in checked["changes"][:SHOWN_CHANGES]]
    for number, (name, told) in enumerate(checked.get("phrasings", ())):  # absent in runs of older versions
        rows.append(
            ("asked with" if number < job.config.relabel.votes else "  tried", f"{name}: tells {told:.2f} nats")
        )
    distilled = job.run.read_json("finetune")["distilled"]
    words = second_opinion.in_words(distilled.get("anchor_weight", distilled.get("say")))  # older runs: "say"
    if job.config.student.early_stopping:
        rows.append(("early stopping", "on real validation texts: the students used more labels than the seeds"))
    if words:
        rows.append(("second opinion", words.removeprefix("second opinion of the ")))
    return rows


def paid(job: Job) -> str:
    """Requests, tokens and cost of the teacher's answers, over all runs of this job."""
    used = [job.run.read_json(stage)["usage"] for stage in ("generate", "relabel")]
    requests = sum(one["requests"] for one in used)
    tokens = sum(one["prompt_tokens"] + one["completion_tokens"] for one in used)
    dollars = sum(one.get("cost_usd", one["new_cost_usd"]) for one in used)  # absent in older runs
    return f"{requests:,} requests, {tokens:,} tokens" + (f", {format_usd(dollars)}" if dollars else "")


CLASS_COLUMNS = ("class", "precision", "recall", "F1", "test texts")


def class_rows(scores: Scores) -> list[tuple[str, ...]]:
    """One row per class, with ``CLASS_COLUMNS``."""
    return [
        (one.label, f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", f"{one.support:,}")
        for one in scores.per_class
    ]
