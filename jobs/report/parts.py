"""Sections that the pages of runs and of studies share: confusions, diversity, agreement, examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.report import figures
from jobs.report.content import Block, Chart, Examples, ExampleText, PageSection, Paragraph, Table
from potstill import draws
from potstill.measures.subjectivity import Agreement, AgreementCurve

SHOWN = 8  # examples in each group
_CELLS = 14  # classes; a larger confusion matrix is a chart
_DIVERSITY_NOTE = (
    "Cosine distances between sentence embeddings: Remote Clique is the mean distance to all other texts of the set, "
    "Chamfer the mean distance to the nearest one. Higher is more diverse. Chamfer falls as a set grows, so compare "
    "sets of similar size."
)
_CURVE_NOTE = (
    "Each point is the score on the test texts with at least that much agreement; the dashed line is the least-squares fit. "
    "Points share texts, so the fit looks more certain than it is. The correlation over single texts (agreement against "
    "right or wrong) does not have this flaw."
)


def confusion(
    name: str, counts: Sequence[Sequence[int]], labels: Sequence[str], folded: bool = False
) -> Table | Chart | Paragraph:
    """A table, or a chart for many classes. ``counts[i][j]``: texts of class i predicted as class j."""
    caption = f"{name}: rows are true classes, columns predicted classes; shaded by share of the row"
    if len(labels) > _CELLS:
        return Chart(caption, figures.confusion(counts, labels))
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    rows = [
        [label, *(f"{count:,}" if count else "·" for count in row)] for label, row in zip(labels, counts, strict=True)
    ]
    return Table(caption, ["", *labels], rows, shades=shares, folded=folded)


def diversity(
    sources: Mapping[str, Sequence[Mapping[str, Any]]], titles: Mapping[str, str], task: str = ""
) -> list[Block]:
    """A chart and tables of each source's diversity.

    ``sources``: for each, rows ``{label, texts, remote_clique, chamfer}``; label ``None`` for all classes together. With
    ``task``, captions name it and the tables are folded.
    """
    named = [(titles.get(name, name), row) for name, rows in sources.items() for row in rows]
    whole = [(name, row) for name, row in named if row["label"] is None and row["remote_clique"] is not None]
    if not whole:
        return []
    start, folded = f"{task}: diversity" if task else "Diversity", bool(task)
    groups = [(name, (row["remote_clique"], row["chamfer"])) for name, row in whole]
    by_class = [(f"{name}: {row['label']}", row) for name, row in named if row["label"] is not None]
    columns = ("texts of", "texts", "Remote Clique", "Chamfer")
    chart = figures.bars(groups, ("Remote Clique", "Chamfer"), "cosine distance")
    blocks: list[Block] = [
        Chart(f"{start} of each set, all classes together", chart),
        Table(f"{start} of each set", columns, [_spread(*one) for one in whole], folded=folded),
    ]
    if by_class:
        blocks.append(Table(f"{start} by class", columns, [_spread(*one) for one in by_class], folded=True))
    return blocks


def diversity_section(blocks: Sequence[Block]) -> PageSection | None:
    """The section around the blocks of ``diversity``; None without any."""
    return PageSection("diversity", "Diversity", [Paragraph(_DIVERSITY_NOTE), *blocks]) if blocks else None


def agreement(measured: Agreement | None, curves: Mapping[str, AgreementCurve]) -> PageSection | None:
    """The annotators' agreement on the test texts, and each classifier's accuracy by agreement."""
    drawn = {name: curve for name, curve in curves.items() if curve.points}
    if measured is None or not drawn:
        return None
    alpha = "undefined: all votes are for one class" if measured.alpha is None else str(measured.alpha)
    facts = [
        ("texts with at least two votes", f"{measured.items:,}"),
        ("annotators", f"{measured.annotators:,}"),
        ("mean agreement (95 % interval)", str(measured.mean)),
        ("Krippendorff's alpha (95 % interval)", alpha),
    ]
    series = [
        figures.Curve(
            name,
            [figures.Dot(p.gamma, p.accuracy, f"{name}: {p.accuracy:.3f} on {p.texts} texts") for p in curve.points],
            None if curve.of_accuracy is None else (curve.of_accuracy.intercept, curve.of_accuracy.slope),
            joined=False,
        )
        for name, curve in drawn.items()
    ]
    rows = []
    for name, curve in drawn.items():
        line = curve.of_accuracy
        fit = ("-", "-") if line is None else (f"{line.slope:+.3f}", f"{line.r_squared:.2f}")
        rho = "-" if curve.rho is None else f"{curve.rho:+.3f} (p = {curve.p_value:.2g})"
        rows.append((name, *fit, rho))
    return PageSection(
        "agreement",
        "Accuracy and agreement",
        [
            Table("Annotator agreement on the test texts", ("", ""), facts),
            Chart(
                "Accuracy on texts with at least this much agreement",
                figures.curves(series, "agreement of at least", "accuracy"),
            ),
            Table("Accuracy against agreement", ("student", "slope", "R²", "Spearman's rho over texts"), rows),
            Paragraph(_CURVE_NOTE, muted=True),
        ],
    )


def examples(groups: Iterable[tuple[str, Sequence[Mapping[str, Any]]]], seed: int = 0) -> PageSection | None:
    """A sample of each group: (heading, rows of the example table)."""
    blocks: list[Block] = []
    for heading, rows in groups:
        if rows:
            drawn = draws.sample(rows, SHOWN, seed, "shown", heading)
            blocks.append(Examples(heading, len(rows), [_example(row) for row in drawn], opened=not blocks))
    return PageSection("examples", "Examples", blocks) if blocks else None


def _example(row: Mapping[str, Any]) -> ExampleText:
    facts = []
    if row.get("alpha") is not None:
        mixed = f" with {row['mix_label']}" if row.get("mix_label") else ""
        facts.append(f"alpha {row['alpha']:.2f}{mixed}")
    if row.get("teacher_label"):
        facts.append(f"teacher: {row['teacher_label']}")
    if row.get("confidence") is not None:
        facts.append(f"confidence {row['confidence']:.2f}")
    if row.get("dropped_because"):
        facts.append(f"dropped: {row['dropped_because']}")
    return ExampleText(row["text"], row["label"], row.get("target_label"), facts)


def _spread(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    values = (row["remote_clique"], row["chamfer"])
    return (name, f"{row['texts']:,}", *("-" if value is None else f"{value:.3f}" for value in values))
