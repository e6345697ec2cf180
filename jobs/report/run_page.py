"""The page of one distillation: whether it helped, by how much, why, and what the texts look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs.report import figures, parts
from jobs.report.content import Block, Chart, Page, PageSection, Paragraph, Table
from jobs.report.result import CLASS_COLUMNS, ROWS, RunReport, class_rows, stage_rows, title
from jobs.run.job import Job
from jobs.runtime.progress import format_duration, format_usd
from potstill.errors import InputError, Problem
from potstill.measures import subjectivity
from potstill.measures.annotations import Votes
from potstill.rows import Example, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTILLED = "distilled"
DIVERSITY_TITLES = {
    "generated": "as the teacher wrote them",
    "distilled": "kept for the student",
    "real": "as many real texts",
}


def build(job: Job, result: RunReport, votes: Votes | None = None) -> Page:
    """The page of a finished run. ``votes``: of annotators on the test texts, by example id or by the text itself.

    Raises ``InputError`` if no vote is about a test text.
    """
    gain = result.difference.macro_f1
    distilled = result.scores[DISTILLED].macro_f1.value
    lead, detail = answer(result)
    sections = [
        scores(result),
        by_class(result),
        confusions(job, result),
        texts(job),
        parts.diversity_section(parts.diversity(job.run.find_json("diversity") or {}, DIVERSITY_TITLES)),
        agreement(job, result, votes),
        cost(job),
        parts.examples(fates(job.run.read(Example, "relabelled")), job.config.seed),
    ]
    facts = [
        ("Classes", f"{len(job.labels)}"),
        ("Labelled examples", f"{len(job.labels) * job.config.task.seeds_per_class:,}"),
        ("Macro-F1, distilled", f"{distilled:.3f}"),
        ("Teacher", job.config.teacher.model),
        ("Student", job.config.student.model),
        ("Test texts", f"{result.scores[DISTILLED].texts:,}"),
    ]
    return Page(
        title=job.task.name,
        kicker=f"Distillation report · {job.task.description}",
        answer=lead,
        detail=detail,
        good=True if gain.low > 0 else False if gain.high < 0 else None,
        facts=facts,
        sections=[section for section in sections if section is not None],
        footer=f"Run {job.run.name} · {job.run.path} · written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by potstill",
    )


def answer(result: RunReport) -> tuple[str, str]:
    """The gain in a sentence, and its statistics."""
    gain = result.difference.macro_f1
    size = f"{abs(gain.value):.3f} macro-F1"
    baseline = ROWS[result.baseline]
    if gain.low > 0:
        lead = f"Distilling helped: {size} above the best student that needs no teacher."
    elif gain.high < 0:
        lead = f"Distilling hurt: {size} below the best student that needs no teacher."
    else:
        side = "above" if gain.value >= 0 else "below"
        lead = f"No significant difference: {size} {side} the best student that needs no teacher."
    return lead, (
        f"95 % interval of the difference to the strongest free baseline ({baseline}): [{gain.low:+.3f}, {gain.high:+.3f}]; "
        f"McNemar's test on accuracy: p = {result.difference.p_value:.2g}."
    )


def scores(result: RunReport) -> PageSection:
    """The scores of all students."""
    shown = [(title(result, name), result.scores[name], name == DISTILLED) for name in ROWS if name in result.scores]
    estimates = [
        figures.Estimate(label, s.macro_f1.value, s.macro_f1.low, s.macro_f1.high, strong) for label, s, strong in shown
    ]
    rows = [
        (label, str(s.macro_f1), str(s.accuracy), f"{s.expected_calibration_error:.3f}", f"{s.mean_confidence:.3f}")
        for label, s, _ in shown
    ]
    return PageSection(
        "scores",
        "Scores",
        [
            Chart("Macro-F1 on the test split with 95 % bootstrap intervals", figures.intervals(estimates, "macro-F1")),
            Table(
                "All students on the same test texts",
                ("student", "macro-F1", "accuracy", "calibration error", "mean confidence"),
                rows,
                strong=[i for i, (_, _, strong) in enumerate(shown) if strong],
            ),
            Paragraph(
                "The baselines without a teacher learn from the labelled examples and the class descriptions. The strongest is "
                "chosen on this test split, in the baselines' favour.",
                muted=True,
            ),
        ],
    )


def by_class(result: RunReport) -> PageSection:
    """F1 of every class, baseline and distilled."""
    return PageSection(
        "classes",
        "By class",
        [
            Chart("F1 by class, largest gain first", class_changes(result)),
            Table("Distilled student by class", CLASS_COLUMNS, class_rows(result.scores[DISTILLED])),
        ],
    )


def class_changes(result: RunReport, title: str = "") -> Figure:
    """A chart of every class's F1, from the baseline's to the distilled student's, largest gain first."""
    before, after = result.scores[result.baseline], result.scores[DISTILLED]
    rows = [(b.label, b.f1, a.f1) for b, a in zip(before.per_class, after.per_class, strict=True)]
    rows.sort(key=lambda row: row[1] - row[2])
    return figures.changes(rows, (ROWS[result.baseline], "distilled"), "F1", title)


def confusions(job: Job, result: RunReport) -> PageSection:
    """The confusion matrices of the distilled student and the baseline."""
    baseline = ROWS[result.baseline]
    blocks: list[Block] = [
        parts.confusion("Distilled", result.scores[DISTILLED].confusion, job.labels),
        parts.confusion(baseline.capitalize(), result.scores[result.baseline].confusion, job.labels, folded=True),
    ]
    return PageSection("confusions", "Confusions", blocks)


def texts(job: Job) -> PageSection:
    """Counts of generation and relabelling."""
    blocks: list[Block] = [Table("From the teacher's replies to the student's texts", ("", ""), stage_rows(job))]
    if bins := relabelled_by_alpha(job.run.read(Example, "relabelled")):
        caption = "Share of texts that relabelling gave another class, by alpha (1: purely the target class)"
        blocks.append(Chart(caption, figures.relabelling(bins)))
    return PageSection("texts", "Texts and labels", blocks)


def relabelled_by_alpha(examples: Sequence[Example]) -> list[figures.AlphaBin]:
    """Shares of relabelled texts by mixup ratio, of the texts that the teacher was asked about."""
    asked = [one for one in examples if one.confidence is not None]
    return figures.alpha_bins([one.alpha for one in asked], [one.label != one.target_label for one in asked])


def agreement(job: Job, result: RunReport, votes: Votes | None) -> PageSection | None:
    """Each student's accuracy by annotator agreement. Raises ``InputError`` if no vote is about a test text."""
    if votes is None:
        return None
    shares = dict(zip(votes.items, subjectivity.instance_agreement(votes.counts), strict=True))
    of_tests = {
        row.example_id: float(shares[key])
        for row in job.data.test
        for key in (row.example_id, " ".join(row.text.split()))
        if key in shares
    }
    if not of_tests:
        message = "holds no test text of this run; items are texts or example_ids of prediction/*.parquet"
        raise InputError([Problem("annotations", message)])
    curves = {
        ROWS[name]: subjectivity.accuracy_curve(of_tests, job.run.read(Prediction, name), job.labels)
        for name in result.scores
    }
    return parts.agreement(subjectivity.measure(votes, job.config.seed), curves)


def cost(job: Job) -> PageSection:
    """Requests, tokens, dollars and time of every stage."""
    rows = []
    for stage in ("generate", "relabel"):
        usage = job.run.read_json(stage)["usage"]
        rows.append(
            (
                stage,
                f"{usage['requests']:,}",
                f"{usage['new_requests']:,}",
                f"{usage['prompt_tokens']:,}",
                f"{usage['completion_tokens']:,}",
                format_usd(usage["new_cost_usd"]),
                format_duration(usage["seconds"]),
            )
        )
    students = job.run.find_json("finetune") or {}
    training = [
        (ROWS.get(name, name), "reused" if one.get("reused") else format_duration(one["seconds"]))
        for name, one in students.items()
        if one.get("seconds") is not None
    ]
    columns = ("stage", "requests", "new", "prompt tokens", "reply tokens", "spent in this run", "time")
    blocks: list[Block] = [Table("Teacher requests", columns, rows)]
    if training:
        blocks.append(Table("Training", ("student", "time"), training))
    return PageSection("cost", "Cost", blocks)


def fates(examples: Sequence[Example]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Texts in groups: kept with another class, kept with their class, dropped, by reason."""
    rows: list[Mapping[str, Any]] = [asdict(one) for one in examples]
    kept = [row for row in rows if row["kept"]]
    groups = [
        ("Kept, relabelled", [r for r in kept if r["label"] != r["target_label"]]),
        ("Kept with their target class", [r for r in kept if r["label"] == r["target_label"]]),
    ]
    reasons = dict.fromkeys(row["dropped_because"] for row in rows if not row["kept"])
    return groups + [
        (f"Dropped: {reason}", [r for r in rows if not r["kept"] and r["dropped_because"] == reason])
        for reason in reasons
    ]
