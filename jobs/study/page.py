"""The page of a study: whether synthetic data works for its tasks, from which source, and what that depends on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import pyarrow as pa

from jobs.report import figures, parts
from jobs.report.content import Block, Chart, Page, PageSection, Paragraph, Table
from jobs.report.render import render
from jobs.report.result import PAGE
from jobs.run.folder import Run
from jobs.runtime.progress import format_duration, format_usd
from jobs.study import report as study_report
from potstill.study.tables import REGRESSION, TEACHER_ALONE, Study, read_study

Row = dict[str, Any]
_MOST = len(figures.SERIES)


def build(study: Study, tables: dict[str, pa.Table], shown: Sequence[Table], place: str) -> Page:
    """The page of a finished or unfinished study. ``shown``: its tables for people."""
    cells: list[Row] = tables["cells"].to_pylist()
    gaps = gaps_to_reference(study, tables["differences"].to_pylist())
    lead, detail = answer(study, gaps)
    sections = [
        results(study, cells, shown),
        subjectivity(study, gaps),
        diversity(study, tables["diversity"].to_pylist()),
        cost(study, cells),
        confusions(study, cells, tables["confusions"].to_pylist()),
        parts.examples(_by_source(study, tables["examples"].to_pylist())),
    ]
    facts = [
        ("Tasks", str(len(study.tasks))),
        ("Sources", str(len(study.sources))),
        ("Repeats", str(study.repeats)),
        ("Teachers", ", ".join(study.teachers)),
        ("Students", ", ".join(study.students)),
        ("Time", format_duration(study.seconds)),
    ]
    return Page(
        title=f"Study {study.name}",
        kicker="Synthetic against real data" + ("" if study.finished else " · not finished yet"),
        answer=lead,
        detail=detail,
        good=None,
        facts=facts,
        sections=[section for section in sections if section is not None],
        footer=f"{place} · written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by potstill",
    )


def write(run: Run) -> str:
    """Write ``report.html`` into a study's folder with the cells done so far, and return its text."""
    study, tables = read_study(run.path)
    text = render(build(study, tables, study_report.shown(study, tables), run.path))
    run.write_text(PAGE, text)
    return text


def gaps_to_reference(study: Study, differences: Sequence[Row]) -> dict[str, list[Row]]:
    """By task: each source's difference to the reference (real data) with the study's first student and teacher,
    best first."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in differences:
        same = row["reference"] == study.reference and row["student"] == row["reference_student"]
        if same and row["student"] in study.students and row["macro_f1"] is not None:
            found[row["task"]].append(row)
    return {task: sorted(rows, key=lambda row: -row["macro_f1"]) for task, rows in found.items()}


def answer(study: Study, gaps: dict[str, list[Row]]) -> tuple[str, str]:
    """A sentence on how many tasks synthetic data is good enough for, and its statistics."""
    best = {task: rows[0] for task, rows in gaps.items() if rows}
    if not best:
        return (
            "No comparison yet.",
            f"No source was compared with {_title(study, study.reference)} yet.",
        )
    level = [task for task, row in best.items() if row["macro_f1_high"] >= 0]
    worst = min(row["macro_f1"] for row in best.values())
    nearest = max(row["macro_f1"] for row in best.values())
    what = _title(study, study.reference)
    lead = (
        f"On {len(level)} of {len(best)} tasks the best other source does not differ significantly from {what}"
        if level
        else f"{what[:1].upper() + what[1:]} wins on all {len(best)} tasks"
    )
    parts_of = [
        f"{task}: {_title(study, row['source'])} {row['macro_f1']:+.3f} [{row['macro_f1_low']:+.3f}, {row['macro_f1_high']:+.3f}]"
        for task, row in best.items()
    ]
    return (
        f"{lead}; the gap of the best source runs from {worst:+.3f} to {nearest:+.3f} macro-F1.",
        "Best source by task, difference to " + what + " with its 95 % interval: " + "; ".join(parts_of) + ".",
    )


def results(study: Study, cells: Sequence[Row], shown: Sequence[Table]) -> PageSection:
    """All tables, and a chart of every task."""
    blocks: list[Block] = []
    for task in study.tasks:
        bars = []
        for source in study.sources:
            for student in (*study.students, REGRESSION, TEACHER_ALONE):
                own = [c for c in cells if (c["task"], c["source"], c["student"]) == (task.name, source.name, student)]
                for teacher in dict.fromkeys(cell["teacher"] for cell in own):
                    rows = [cell for cell in own if cell["teacher"] == teacher]
                    name = source.title + (f" ({student})" if student not in study.students[:1] else "")
                    name += f", {teacher}" if len(study.teachers) > 1 and teacher else ""
                    low, high = (
                        (rows[0]["macro_f1_low"], rows[0]["macro_f1_high"])
                        if len(rows) == 1
                        else (min(r["macro_f1"] for r in rows), max(r["macro_f1"] for r in rows))
                    )
                    bars.append(
                        figures.Estimate(
                            name, fmean(r["macro_f1"] for r in rows), low, high, source.name == study.reference
                        )
                    )
        if bars:
            whiskers = "95 % bootstrap interval" if study.repeats == 1 else "the repeats' lowest and highest"
            blocks.append(
                Chart(f"{task.name}: macro-F1 by source; whiskers: {whiskers}", figures.intervals(bars, "macro-F1"))
            )
    blocks += shown
    meanings = [(source.title, source.meaning) for source in study.sources]
    blocks.append(Table("Sources", ("", ""), meanings, folded=True))
    return PageSection("results", "Results", blocks)


def subjectivity(study: Study, gaps: dict[str, list[Row]]) -> PageSection | None:
    """The gap to real data over the tasks, from least to most subjective."""
    ranked = [task for task in study.tasks if task.name in gaps]
    if len(ranked) < 2:
        return None
    place = {task.name: i for i, task in enumerate(ranked, 1)}
    names_at = {float(i): name for name, i in place.items()}
    names = [source.name for source in study.sources if source.name != study.reference]
    series = []
    for name in names:
        dots = [
            figures.Dot(place[task], row["macro_f1"], f"{task}: {row['macro_f1']:+.3f}")
            for task in place
            for row in gaps[task]
            if row["source"] == name
        ][: len(ranked)]
        if dots:
            series.append(figures.Curve(_title(study, name), sorted(dots, key=lambda dot: dot.x)))
    if not series:
        return None
    unknown = [task.name for task in ranked if task.order_from == "not known"]
    if len(unknown) == len(ranked):
        axis, said = (
            "tasks",
            "The tasks' subjectivity is not known; they are in the order of the config.",
        )
    else:
        axis = "from least to most subjective"
        said = f"From least to most subjective: {', '.join(task.name for task in ranked)}."
        said += f" The place of {', '.join(unknown)} is not known." if unknown else ""
    charts_of = [
        Chart(
            f"Difference to {_title(study, study.reference)}",
            figures.curves(series[i : i + _MOST], axis, "macro-F1", names=names_at),
        )
        for i in range(0, len(series), _MOST)
    ]
    return PageSection(
        "subjectivity",
        "Gap and subjectivity",
        [Paragraph(said), *charts_of],
    )


def diversity(study: Study, rows: Sequence[Row]) -> PageSection | None:
    """Every source's diversity, task by task."""
    blocks: list[Block] = []
    titles = {source.name: source.title for source in study.sources}
    for task in study.tasks:
        own: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["task"] == task.name and row["repeat"] == 0 and row["teacher"] in (None, "", *study.teachers[:1]):
                own[row["source"]].append(row)
        section = parts.diversity({name: own[name] for name in titles if name in own}, titles)
        if section is not None:
            explained, chart, *tables = section.blocks
            assert isinstance(chart, Chart)
            blocks += [] if blocks else [explained]
            blocks.append(Chart(f"{task.name}: diversity of each source", chart.figure))
            blocks += [
                Table(
                    f"{task.name}: {table.caption[:1].lower()}{table.caption[1:]}",
                    table.columns,
                    table.rows,
                    folded=True,
                )
                for table in tables
                if isinstance(table, Table)
            ]
    return PageSection("diversity", "Diversity", blocks) if blocks else None


def cost(study: Study, cells: Sequence[Row]) -> PageSection | None:
    """Each source's cost and its score."""
    asked = [cell for cell in cells if cell["requests"]]
    if not asked:
        return None
    paid = any(cell["cost_usd"] for cell in asked)
    unit = "dollars" if paid else "thousand tokens, prompts and replies"
    blocks: list[Block] = []
    for task in study.tasks:
        series = []
        for source in study.sources:
            dots = [
                figures.Dot(_spent(cell, paid), cell["macro_f1"], f"{source.title}: {cell['macro_f1']:.3f}")
                for cell in asked
                if (cell["task"], cell["source"]) == (task.name, source.name)
            ]
            if dots:
                series.append(figures.Curve(source.title, dots, joined=False))
        for i in range(0, len(series), _MOST):
            blocks.append(
                Chart(f"{task.name}: macro-F1 against cost", figures.curves(series[i : i + _MOST], unit, "macro-F1"))
            )
    rows = [
        (
            f"{task.name}: {source.title}",
            f"{sum(c['requests'] for c in own):,}",
            f"{sum((c['prompt_tokens'] or 0) + (c['completion_tokens'] or 0) for c in own):,}",
            format_usd(sum(c["cost_usd"] or 0.0 for c in own)),
            f"{fmean(c['macro_f1'] for c in own):.3f}",
        )
        for task in study.tasks
        for source in study.sources
        if (own := [c for c in asked if (c["task"], c["source"]) == (task.name, source.name)])
    ]
    blocks.append(Table("Teacher requests by source", ("source", "requests", "tokens", "cost", "macro-F1"), rows))
    blocks.append(Paragraph("Shared requests count for each source; the ledger pays for them once.", muted=True))
    return PageSection("cost", "Cost and accuracy", blocks)


def confusions(study: Study, cells: Sequence[Row], counts: Sequence[Row]) -> PageSection | None:
    """For each task the confusion matrix of the best cell that is not the reference, in the first repeat."""
    blocks: list[Block] = []
    for task in study.tasks:
        own = [
            cell
            for cell in cells
            if cell["task"] == task.name and cell["repeat"] == 0 and cell["source"] != study.reference
        ]
        if not own:
            continue
        best = max(own, key=lambda cell: cell["macro_f1"])
        place = {label: i for i, label in enumerate(task.labels)}
        matrix = [[0] * len(place) for _ in place]
        for row in counts:
            if row["cell"] == best["cell"]:
                matrix[place[row["label"]]][place[row["predicted"]]] = row["count"]
        name = f"{task.name}, {_title(study, best['source'])} ({best['student']})"
        blocks.append(parts.confusion(name, matrix, task.labels, folded=bool(blocks)))
    return PageSection("confusions", "Confusions", blocks) if blocks else None


def _by_source(study: Study, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    return [
        (f"{task.name}: {source.title}", [r for r in rows if (r["task"], r["source"]) == (task.name, source.name)])
        for task in study.tasks
        for source in study.sources
    ]


def _spent(cell: Row, paid: bool) -> float:
    tokens = (cell["prompt_tokens"] or 0) + (cell["completion_tokens"] or 0)
    return float(cell["cost_usd"] or 0.0) if paid else tokens / 1000


def _title(study: Study, name: str) -> str:
    return next((source.title for source in study.sources if source.name == name), name)
