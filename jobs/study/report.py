"""A study's tables for the terminal, for Markdown and for MLflow; made of its Parquet tables alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.markup import escape

from jobs.runtime.terminal import Terminal
from jobs.study.cells import Cell
from jobs.study.folder import StudyFolder
from jobs.tracking.tracker import Tracker
from potstill.measures.scores import mean_and_deviation
from potstill.study.config import StudyConfig
from potstill.study.tables import REGRESSION, TEACHER_ALONE, Study

_A1, _A2 = "promptmix_a1", "promptmix"


@dataclass(frozen=True, slots=True)
class Shown:
    """A table as people see it: rows of words under ``columns``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def print_start(terminal: Terminal, config: StudyConfig, folder: StudyFolder, cells: int, left: int) -> None:
    """What is compared, and how much of it is done."""
    terminal.say(
        f"[bold]study {escape(config.name)}[/]: {len(config.tasks)} tasks, {len(config.sources)} sources, "
        f"{len(config.students)} student(s), {len(config.teachers)} teacher(s), {config.repeats} repeat(s)"
    )
    done = f", {cells - left} of them are done" if left < cells else ""
    terminal.say(f"{cells} cells{done}; {folder.run.path}")
    for edge, cycle in folder.ranking.broken if folder.ranking else ():
        terminal.warn(f"the judgements go round in a circle ({' < '.join(cycle)}); the weakest gave way: {edge}")


def print_cell(cell: Cell) -> None:
    """A line before the stages of a source."""
    teacher = f", {cell.teacher}" if cell.teacher else ""
    cell.job.terminal.say(
        f"[bold]{escape(cell.task.name)}[/] {escape(cell.source.title)}, repeat {cell.repeat + 1}{escape(teacher)}"
    )


def print_tables(terminal: Terminal, study: Study, tables: dict[str, pa.Table]) -> None:
    """All tables, each under its title with a line on what it says."""
    for one in shown(study, tables):
        terminal.say()
        terminal.table(one.title, one.columns, one.rows, left=2)
        if one.note:
            terminal.say(one.note)


def print_places(terminal: Terminal, folder: StudyFolder) -> None:
    """Where the tables are."""
    terminal.say()
    terminal.say(f"page      {folder.run.path}/report.html")
    terminal.say(f"tables    {folder.run.path}/study/*.parquet (potstill/study/tables.py says what is in them)")


def log(tracker: Tracker, study: Study, tables: dict[str, pa.Table]) -> None:
    """The study's numbers and tables into the tracked run."""
    for name, table in tables.items():
        tracker.table(name, table)
    tracker.metrics(
        {
            f"{row['task']}/{row['source']}/{row['student']}/macro_f1": row["macro_f1"]
            for row in tables["cells"].to_pylist()
            if row["repeat"] == 0
        }
    )
    tracker.text("study.md", as_markdown(study, tables))


def shown(study: Study, tables: dict[str, pa.Table]) -> list[Shown]:
    """Table 1 of Li et al., the PromptMix table, the teachers and the diversity; those that the sources allow."""
    cells = tables["cells"].to_pylist()
    found = [
        table
        for student in study.students
        for teacher in study.teachers
        for table in (_table_1(study, cells, tables["differences"].to_pylist(), student, teacher),)
    ]
    found += [_promptmix(study, cells, tables["differences"].to_pylist(), teacher) for teacher in study.teachers]
    if len(study.teachers) > 1:
        found.append(_teachers(study, cells))
    if tables["diversity"].num_rows:
        found.append(_diversity(study, tables["diversity"].to_pylist()))
    return [table for table in found if table.rows]


def as_markdown(study: Study, tables: dict[str, pa.Table]) -> str:
    """The same tables as Markdown."""
    parts = [f"# Study {study.name}"]
    for one in shown(study, tables):
        lines = [one.columns, ["---"] * len(one.columns), *one.rows]
        parts.append(f"## {one.title}")
        parts.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines))
        if one.note:
            parts.append(one.note)
    return "\n\n".join(parts) + "\n"


def _table_1(
    study: Study, cells: list[dict[str, Any]], differences: list[dict[str, Any]], student: str, teacher: str
) -> Shown:
    rows = []
    for task in study.tasks:
        for source in study.sources:
            for its in (student, REGRESSION, TEACHER_ALONE):
                own = _of(cells, task.name, source.name, its, teacher)
                if own:
                    title = source.title + (", regression" if its == REGRESSION else "")
                    difference = _of(
                        [
                            one
                            for one in differences
                            if one["reference"] == study.reference and one["reference_student"] != REGRESSION
                        ],
                        task.name,
                        source.name,
                        its,
                        teacher,
                    )
                    rows.append((task.name, title, *_scores(own), _interval(difference)))
    reference = next(source.title for source in study.sources if source.name == study.reference)
    title = f"Table 1: every source against {reference}, tasks from least to most subjective"
    if len(study.students) > 1 or len(study.teachers) > 1:
        title += f" (student {student}, teacher {teacher})"
    # The task is named once.
    named = [("" if i and rows[i - 1][0] == row[0] else row[0], *row[1:]) for i, row in enumerate(rows)]
    return Shown(
        title,
        ("task", "source", "macro-F1", "accuracy", f"macro-F1 minus {reference}"),
        tuple(named),
        _table_1_note(study),
    )


def _table_1_note(study: Study) -> str:
    repeats = "mean ± standard deviation over repeats; " if study.repeats > 1 else "one repeat; "
    unknown = [task.name for task in study.tasks if task.order_from == "not known"]
    order = f"; no published place in that order: {', '.join(unknown)}" if unknown else ""
    return f"{repeats}differences with their 95 % bootstrap interval{order}"


def _promptmix(study: Study, cells: list[dict[str, Any]], differences: list[dict[str, Any]], teacher: str) -> Shown:
    student = study.students[0]
    rows = []
    for task in study.tasks:
        changed = [one["share_changed"] for one in _of(cells, task.name, _A2, student, teacher)]
        baseline = _stronger(cells, task.name, student)
        for source in study.sources:
            for its in (student, REGRESSION, TEACHER_ALONE):
                own = _of(cells, task.name, source.name, its, teacher)
                if not own:
                    continue
                gain = [
                    one
                    for one in _of(differences, task.name, source.name, its, teacher)
                    if one["reference_student"] == baseline and one["reference"] in _k_shot(cells)
                ]
                share = f"{statistics.fmean(changed):.0%}" if source.name == _A2 and None not in changed else ""
                texts = f"{statistics.fmean(one['texts'] for one in own):.0f}"
                title = source.title + (", regression" if its == REGRESSION else "")
                rows.append((task.name, title, texts, _scores(own)[1], _scores(own)[0], share, _interval(gain)))
    named = [("" if i and rows[i - 1][0] == row[0] else row[0], *row[1:]) for i, row in enumerate(rows)]
    title = "PromptMix: A1 and A2 are the accuracies without and with relabelling"
    title += f" (teacher {teacher})" if len(study.teachers) > 1 else ""
    note = "relabelled: share of the texts whose class was changed; gain: macro-F1 above the stronger k-shot baseline (by test)"
    columns = ("task", "source", "texts", "accuracy", "macro-F1", "relabelled", "gain over k-shot")
    has = any(source.name in (_A1, _A2) for source in study.sources)
    return Shown(title, columns, tuple(named) if has else (), note)


def _k_shot(cells: list[dict[str, Any]]) -> set[str]:
    """The sources of seeds alone: they have a regression too."""
    return {one["source"] for one in cells if one["student"] == REGRESSION}


def _stronger(cells: list[dict[str, Any]], task: str, student: str) -> str:
    """Which of the two k-shot baselines has the higher mean macro-F1 on the test split."""
    both = {
        its: [one for one in cells if one["task"] == task and one["student"] == its] for its in (student, REGRESSION)
    }
    means = {
        its: statistics.fmean(values)
        for its, own in both.items()
        if (values := [one["macro_f1"] for one in own if one["source"] in _k_shot(cells)])
    }
    return max(means, key=lambda its: means[its]) if means else student


def _teachers(study: Study, cells: list[dict[str, Any]]) -> Shown:
    rows = []
    for task in study.tasks:
        for source in study.sources:
            for teacher in study.teachers:
                own = [
                    one
                    for one in cells
                    if (one["task"], one["source"], one["teacher"]) == (task.name, source.name, teacher)
                    and one["student"] in (study.students[0], TEACHER_ALONE)
                ]
                if own:
                    cost = f"${sum(one['cost_usd'] for one in own):.2f}"
                    rows.append((task.name, source.title, teacher, *_scores(own), cost))
    columns = ("task", "source", "teacher", "macro-F1", "accuracy", "cost")
    return Shown("Teachers", columns, tuple(rows))


def _diversity(study: Study, rows: list[dict[str, Any]]) -> Shown:
    found = []
    for task in study.tasks:
        for source in study.sources:
            own = [
                one for one in rows if one["label"] is None and (one["task"], one["source"]) == (task.name, source.name)
            ]
            if own:
                values = [_mean_of(own, "remote_clique"), _mean_of(own, "chamfer")]
                found.append((task.name, source.title, f"{statistics.fmean(one['texts'] for one in own):.0f}", *values))
    named = [("" if i and found[i - 1][0] == row[0] else row[0], *row[1:]) for i, row in enumerate(found)]
    note = "cosine distance of sentence embeddings: mean to all others (Remote Clique) and to the nearest (Chamfer)"
    return Shown("Diversity", ("task", "source", "texts", "Remote Clique", "Chamfer"), tuple(named), note)


def _of(rows: Sequence[dict[str, Any]], task: str, source: str, student: str, teacher: str) -> list[dict[str, Any]]:
    """Rows of a source; those of sources that ask no teacher belong to every teacher's table."""
    return [
        one
        for one in rows
        if (one["task"], one["source"], one["student"]) == (task, source, student) and one["teacher"] in (teacher, None)
    ]


def _scores(own: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Macro-F1 and accuracy, with the standard deviation where there are repeats."""
    words = []
    for measure in ("macro_f1", "accuracy"):
        mean, deviation = mean_and_deviation([one[measure] for one in own])
        words.append(f"{mean:.3f} ± {deviation:.3f}" if len(own) > 1 else f"{mean:.3f}")
    return words[0], words[1]


def _interval(differences: Sequence[dict[str, Any]]) -> str:
    if not differences:
        return ""
    one = differences[0]
    return f"{one['macro_f1']:+.3f} [{one['macro_f1_low']:+.3f}, {one['macro_f1_high']:+.3f}]"


def _mean_of(rows: Sequence[dict[str, Any]], name: str) -> str:
    values = [one[name] for one in rows if one[name] is not None]
    return f"{statistics.fmean(values):.3f}" if values else "-"
