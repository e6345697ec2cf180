"""The page of one distillation: did it help, by how much, why, and what do the texts look like?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from jobs.report import charts, figures, parts
from jobs.report.content import Block, Chart, Page, PageSection, Paragraph, Table
from jobs.report.result import ROWS, RunReport, stage_rows
from jobs.run.job import Job
from jobs.runtime.progress import format_duration, format_usd
from potstill.errors import InputError, Problem
from potstill.measures import subjectivity
from potstill.measures.annotations import Votes
from potstill.rows import Example, Prediction

DISTILLED = "distilled"
DIVERSITY_TITLES = {
    "generated": "as the teacher wrote them",
    "distilled": "kept for the student",
    "real": "as many real texts",
}


def build(job: Job, result: RunReport, votes: Votes | None = None) -> Page:
    """The page of a finished run. ``votes``: of people on the test texts, items by example id or by the text itself."""
    gain = result.difference.macro_f1
    distilled = result.scores[DISTILLED].macro_f1.value
    lead, detail = answer(result)
    sections = [
        scores(result),
        by_class(result),
        confusions(job, result),
        texts(job),
        parts.diversity(read_json(job, "diversity"), DIVERSITY_TITLES),
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
    """The gain in words, and what it rests on."""
    gain = result.difference.macro_f1
    size = f"{abs(gain.value):.3f} macro-F1"
    baseline = ROWS[result.baseline]
    if gain.low > 0:
        lead = f"Distilling helped: {size} above the labelled examples alone."
    elif gain.high < 0:
        lead = f"Distilling did harm: {size} below the labelled examples alone."
    else:
        side = "above" if gain.value >= 0 else "below"
        lead = f"It can't be told whether distilling helped: {size} {side} the labelled examples alone, which may be chance."
    return lead, (
        f"95 % interval of the difference [{gain.low:+.3f}, {gain.high:+.3f}], against the stronger of the baselines "
        f"({baseline}); McNemar's p on accuracy {result.difference.p_value:.2g}."
    )


def scores(result: RunReport) -> PageSection:
    """Every student's scores."""
    shown = [(label, result.scores[name], name == DISTILLED) for name, label in ROWS.items() if name in result.scores]
    bars = [charts.Bar(label, s.macro_f1.value, s.macro_f1.low, s.macro_f1.high, strong) for label, s, strong in shown]
    rows = [
        (label, str(s.macro_f1), str(s.accuracy), f"{s.expected_calibration_error:.3f}", f"{s.mean_confidence:.3f}")
        for label, s, _ in shown
    ]
    return PageSection(
        "scores",
        "Scores",
        [
            Chart("Macro-F1 on the test split with 95 % bootstrap intervals", charts.intervals(bars, "macro-F1")),
            Table(
                "All students on the same test texts",
                ("student", "macro-F1", "accuracy", "calibration error", "mean confidence"),
                rows,
                strong=[i for i, (_, _, strong) in enumerate(shown) if strong],
            ),
            Paragraph(
                "The baselines see the labelled examples alone. Which of them is the stronger was decided on this test split, "
                "in their favour.",
                muted=True,
            ),
        ],
    )


def by_class(result: RunReport) -> PageSection:
    """F1 of every class, before and after."""
    before, after = result.scores[result.baseline], result.scores[DISTILLED]
    rows = [(b.label, b.f1, a.f1) for b, a in zip(before.per_class, after.per_class, strict=True)]
    rows.sort(key=lambda row: row[1] - row[2])
    return PageSection(
        "classes",
        "By class",
        [
            Chart(
                "F1 by class, the largest gain first",
                charts.changes(rows, (ROWS[result.baseline], "distilled"), "F1"),
            ),
            parts.per_class(after, "Distilled student by class"),
        ],
    )


def confusions(job: Job, result: RunReport) -> PageSection:
    """What was taken for what."""
    baseline = ROWS[result.baseline]
    blocks: list[Block] = [
        parts.confusion("Distilled", result.scores[DISTILLED].confusion, job.labels),
        parts.confusion(baseline.capitalize(), result.scores[result.baseline].confusion, job.labels, folded=True),
    ]
    return PageSection("confusions", "Confusions", blocks)


def texts(job: Job) -> PageSection:
    """What generation and relabelling did."""
    blocks: list[Block] = [Table("From the teacher's replies to the student's texts", ("", ""), stage_rows(job))]
    asked = [one for one in job.run.read(Example, "relabelled") if one.confidence is not None]
    bins = figures.alpha_bins([one.alpha for one in asked], [one.label != one.target_label for one in asked])
    if bins:
        groups = [
            (f"{b.low:.2f}" if b.low == b.high else f"{b.low:.2f} to {b.high:.2f}", (b.share,)) for b in bins if b.texts
        ]
        caption = (
            "Share of texts that got another class than they were written for, by alpha (1: purely the class asked for)"
        )
        blocks.append(Chart(caption, charts.bars(groups, ("relabelled",), "share relabelled")))
    return PageSection("texts", "Texts and labels", blocks)


def agreement(job: Job, result: RunReport, votes: Votes | None) -> PageSection | None:
    """Accuracy on what people agree on, for every student whose predictions are there."""
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
        message = "its items are no test texts of this run; name them by their text, or by the example_id in prediction/*.parquet"
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
    students = read_json(job, "finetune")
    training = [
        (ROWS.get(name, name), "reused" if one.get("reused") else format_duration(one["seconds"]))
        for name, one in students.items()
        if one.get("seconds") is not None
    ]
    columns = ("stage", "requests", "of them new", "prompt tokens", "reply tokens", "spent in this run", "time")
    blocks: list[Block] = [Table("What the teacher was asked", columns, rows)]
    if training:
        blocks.append(Table("Training", ("student", "time"), training))
    return PageSection("cost", "Cost", blocks)


def fates(examples: Sequence[Example]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Texts by what became of them: kept as written for, kept with another class, dropped for a reason."""
    rows: list[Mapping[str, Any]] = [asdict(one) for one in examples]
    kept = [row for row in rows if row["kept"]]
    groups = [
        ("Kept with another class than they were written for", [r for r in kept if r["label"] != r["target_label"]]),
        ("Kept with the class they were written for", [r for r in kept if r["label"] == r["target_label"]]),
    ]
    reasons = dict.fromkeys(row["dropped_because"] for row in rows if not row["kept"])
    return groups + [
        (f"Dropped: {reason}", [r for r in rows if not r["kept"] and r["dropped_because"] == reason])
        for reason in reasons
    ]


def read_json(job: Job, name: str) -> Any:
    """``<name>.json`` of the run, or nothing where an older version did not write it."""
    try:
        return job.run.read_json(name)
    except InputError:
        return {}
