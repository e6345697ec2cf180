"""The page of a study: whether and from which source synthetic data works for each task."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import fmean

import pyarrow as pa

from jobs.report import figures, parts
from jobs.report.content import Block, Chart, Page, PageSection, Paragraph, Table
from jobs.report.render import render
from jobs.report.result import PAGE
from jobs.run.folder import Run
from jobs.runtime.progress import format_duration, format_usd
from jobs.study import report as study_report
from jobs.study.report import Row, gain_in_words, group, title_of
from potstill.study.tables import REGRESSION, TEACHER_ALONE, Study, read_study

_MOST = len(figures.SERIES)


def build(study: Study, tables: dict[str, pa.Table], shown: Sequence[Table], place: str) -> Page:
    """The page of a study, finished or not. ``shown``: its printed tables."""
    cells: list[Row] = tables["cells"].to_pylist()
    gaps = gaps_to_reference(study, tables["differences"].to_pylist())
    lead, detail = answer(study, gaps)
    sections = [
        results(study, cells, shown),
        subjectivity(study, gaps),
        diversity(study, tables["diversity"].to_pylist()),
        cost(study, cells),
        confusions(study, cells, tables["confusions"].to_pylist()),
        _examples(study, tables["examples"].to_pylist()),
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
    """Write ``report.html`` with the cells finished so far, and return its text."""
    study, tables = read_study(run.path)
    text = render(build(study, tables, study_report.shown(study, tables), run.path))
    run.write_text(PAGE, text)
    return text


def gaps_to_reference(study: Study, differences: Sequence[Row]) -> dict[str, list[Row]]:
    """Each task's differences between a source and the reference with the same student, the best first."""
    same = [
        row
        for row in differences
        if row["reference"] == study.reference
        and row["student"] == row["reference_student"]
        and row["student"] in study.students
        and row["macro_f1"] is not None
    ]
    return {task: sorted(rows, key=lambda row: -row["macro_f1"]) for (task,), rows in group(same, "task").items()}


def answer(study: Study, gaps: dict[str, list[Row]]) -> tuple[str, str]:
    """A sentence on the number of tasks for which synthetic data is good enough, and its statistics."""
    what = title_of(study, study.reference)
    best = {task: rows[0] for task, rows in gaps.items()}
    if not best:
        return "No comparison yet.", f"No source was compared with {what} yet."
    level = [task for task, row in best.items() if row["macro_f1_high"] >= 0]
    values = [row["macro_f1"] for row in best.values()]
    lead = (
        f"On {len(level)} of {len(best)} tasks the best other source does not differ significantly from {what}"
        if level
        else f"{what[:1].upper() + what[1:]} wins on all {len(best)} tasks"
    )
    by_task = [f"{task}: {title_of(study, row['source'])} {gain_in_words(row)}" for task, row in best.items()]
    return (
        f"{lead}; the gap of the best source runs from {min(values):+.3f} to {max(values):+.3f} macro-F1.",
        f"Best source by task, difference to {what} with its 95 % interval: {'; '.join(by_task)}.",
    )


def results(study: Study, cells: Sequence[Row], shown: Sequence[Table]) -> PageSection:
    """A chart per task, and all tables."""
    blocks: list[Block] = []
    repeats = group(cells, "task", "source", "student", "teacher")
    students = (*study.students, REGRESSION, TEACHER_ALONE)
    whiskers = "95 % bootstrap interval" if study.repeats == 1 else "lowest and highest repeat"
    for task in study.tasks:
        bars = []
        for source, student, teacher in itertools.product(study.sources, students, (None, *study.teachers)):
            if rows := repeats[task.name, source.name, student, teacher]:
                name = source.title + (f" ({student})" if student not in study.students[:1] else "")
                name += f", {teacher}" if len(study.teachers) > 1 and teacher else ""
                values = [row["macro_f1"] for row in rows]
                low, high = min(values), max(values)
                if len(rows) == 1:
                    low, high = rows[0]["macro_f1_low"], rows[0]["macro_f1_high"]
                bars.append(figures.Estimate(name, fmean(values), low, high, source.name == study.reference))
        if bars:
            caption = f"{task.name}: macro-F1 by source; whiskers: {whiskers}"
            blocks.append(Chart(caption, figures.intervals(bars, "macro-F1")))
    blocks += shown
    meanings = [(source.title, source.meaning) for source in study.sources]
    blocks.append(Table("Sources", ("", ""), meanings, folded=True))
    return PageSection("results", "Results", blocks)


def subjectivity(study: Study, gaps: dict[str, list[Row]]) -> PageSection | None:
    """The gap to real data by task, from least to most subjective."""
    ranked = [task for task in study.tasks if task.name in gaps]
    if len(ranked) < 2:
        return None
    place = {task.name: i for i, task in enumerate(ranked, 1)}
    names_at = {float(i): name for name, i in place.items()}
    series = []
    for source in study.sources:
        dots = [
            figures.Dot(place[task], row["macro_f1"], f"{task}: {row['macro_f1']:+.3f}")
            for task in place
            for row in gaps[task]
            if row["source"] == source.name != study.reference
        ][: len(ranked)]
        if dots:
            series.append(figures.Curve(source.title, sorted(dots, key=lambda dot: dot.x)))
    if not series:
        return None
    unknown = [task.name for task in ranked if task.order_from == "not known"]
    axis = "from least to most subjective"
    order = f"From least to most subjective: {', '.join(task.name for task in ranked)}."
    if len(unknown) == len(ranked):
        axis, order = "tasks", "The tasks' subjectivity is not known; they are in the order of the config."
    elif unknown:
        order += f" The place of {', '.join(unknown)} is not known."
    caption = f"Difference to {title_of(study, study.reference)}"
    charts = _charts(series, caption, axis, names_at)
    return PageSection("subjectivity", "Gap and subjectivity", [Paragraph(order), *charts])


def diversity(study: Study, rows: Sequence[Row]) -> PageSection | None:
    """Every source's diversity by task, in the first repeat with the first teacher."""
    teachers = (None, "", *study.teachers[:1])
    of_source = group([row for row in rows if row["repeat"] == 0 and row["teacher"] in teachers], "task", "source")
    titles = {source.name: source.title for source in study.sources}
    blocks: list[Block] = []
    for task in study.tasks:
        blocks += parts.diversity({name: of_source[task.name, name] for name in titles}, titles, task.name)
    return parts.diversity_section(blocks)


def cost(study: Study, cells: Sequence[Row]) -> PageSection | None:
    """Each source's cost and score."""
    asked = [cell for cell in cells if cell["requests"]]
    if not asked:
        return None
    paid = any(cell["cost_usd"] for cell in asked)
    unit = "dollars" if paid else "thousand tokens, prompts and replies"
    of_source = group(asked, "task", "source")
    blocks: list[Block] = []
    rows = []
    for task in study.tasks:
        series = []
        for source in study.sources:
            if own := of_source[task.name, source.name]:
                dots = [
                    figures.Dot(_spent(cell, paid), cell["macro_f1"], f"{source.title}: {cell['macro_f1']:.3f}")
                    for cell in own
                ]
                series.append(figures.Curve(source.title, dots, joined=False))
                requests, tokens = sum(cell["requests"] for cell in own), sum(_tokens(cell) for cell in own)
                dollars = format_usd(sum(cell["cost_usd"] or 0.0 for cell in own))
                score = f"{fmean(cell['macro_f1'] for cell in own):.3f}"
                rows.append((f"{task.name}: {source.title}", f"{requests:,}", f"{tokens:,}", dollars, score))
        blocks += _charts(series, f"{task.name}: macro-F1 against cost", unit)
    blocks.append(Table("Teacher requests by source", ("source", "requests", "tokens", "cost", "macro-F1"), rows))
    blocks.append(Paragraph("Shared requests count for each source; the ledger pays for them once.", muted=True))
    return PageSection("cost", "Cost and accuracy", blocks)


def confusions(study: Study, cells: Sequence[Row], counts: Sequence[Row]) -> PageSection | None:
    """Each task's confusion matrix of the best cell besides the reference, in the first repeat."""
    blocks: list[Block] = []
    of_task = group([cell for cell in cells if cell["repeat"] == 0 and cell["source"] != study.reference], "task")
    for task in study.tasks:
        own = of_task[task.name,]
        if not own:
            continue
        best = max(own, key=lambda cell: cell["macro_f1"])
        place = {label: i for i, label in enumerate(task.labels)}
        matrix = [[0] * len(place) for _ in place]
        for row in counts:
            if row["cell"] == best["cell"]:
                matrix[place[row["label"]]][place[row["predicted"]]] = row["count"]
        name = f"{task.name}, {title_of(study, best['source'])} ({best['student']})"
        blocks.append(parts.confusion(name, matrix, task.labels, folded=bool(blocks)))
    return PageSection("confusions", "Confusions", blocks) if blocks else None


def _examples(study: Study, rows: Sequence[Row]) -> PageSection | None:
    of_source = group(rows, "task", "source")
    pairs = itertools.product(study.tasks, study.sources)
    return parts.examples((f"{task.name}: {source.title}", of_source[task.name, source.name]) for task, source in pairs)


def _charts(
    series: Sequence[figures.Curve], caption: str, axis: str, names: Mapping[float, str] | None = None
) -> list[Chart]:
    """Charts of macro-F1, as many as the number of colours requires."""
    return [
        Chart(caption, figures.curves(series[i : i + _MOST], axis, "macro-F1", names=names))
        for i in range(0, len(series), _MOST)
    ]


def _tokens(cell: Row) -> int:
    return (cell["prompt_tokens"] or 0) + (cell["completion_tokens"] or 0)


def _spent(cell: Row, paid: bool) -> float:
    return float(cell["cost_usd"] or 0.0) if paid else _tokens(cell) / 1000
