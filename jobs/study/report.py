"""A study's tables for the terminal, for Markdown and for MLflow, from its Parquet tables alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from rich.markup import escape

from jobs.report.content import Table, markdown_table
from jobs.runtime.terminal import Terminal
from jobs.study.cells import Cell
from jobs.study.folder import StudyFolder
from jobs.tracking.tracker import Tracker
from potstill.measures.scores import mean_and_deviation
from potstill.study.config import StudyConfig
from potstill.study.tables import REGRESSION, TEACHER_ALONE, Study, StudySource, StudyTask

Row = dict[str, Any]
_A1, _A2 = "promptmix_a1", "promptmix"


def print_start(terminal: Terminal, config: StudyConfig, folder: StudyFolder, cells: int, left: int) -> None:
    """Print the size of the study and how much of it is done."""
    terminal.say(
        f"[bold]study {escape(config.name)}[/]: {len(config.tasks)} tasks, {len(config.sources)} sources, "
        f"{len(config.students)} student(s), {len(config.teachers)} teacher(s), {config.repeats} repeat(s)"
    )
    done = f", {cells - left} of them done" if left < cells else ""
    terminal.say(f"{cells} cells{done}; {folder.run.path}")
    for edge, cycle in folder.ranking.broken if folder.ranking else ():
        terminal.warn(f"the judgements are cyclic ({' < '.join(cycle)}); dropped the weakest: {edge}")


def print_cell(cell: Cell) -> None:
    """Print a line before the stages of a source."""
    teacher = f", {cell.teacher}" if cell.teacher else ""
    cell.job.terminal.say(
        f"[bold]{escape(cell.task.name)}[/] {escape(cell.source.title)}, repeat {cell.repeat + 1}{escape(teacher)}"
    )


def print_tables(terminal: Terminal, study: Study, tables: dict[str, pa.Table]) -> None:
    """Print all tables, each with its note."""
    for one in shown(study, tables):
        terminal.say()
        terminal.table(one.caption, one.columns, one.rows, left=2)
        if one.note:
            terminal.say(one.note)


def print_places(terminal: Terminal, folder: StudyFolder) -> None:
    """Print where the page and the tables are."""
    terminal.say()
    terminal.say(f"page      {folder.run.path}/report.html")
    terminal.say(f"tables    {folder.run.path}/study/*.parquet (columns: potstill/study/tables.py)")


def log(tracker: Tracker, study: Study, tables: dict[str, pa.Table]) -> None:
    """Log the study's numbers and tables."""
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


def shown(study: Study, tables: dict[str, pa.Table]) -> list[Table]:
    """Table 1 of Li et al., the PromptMix table, teachers and diversity; those that the study's sources allow."""
    cells, differences = tables["cells"].to_pylist(), tables["differences"].to_pylist()
    found = [
        _table_1(study, cells, differences, student, teacher)
        for student in study.students
        for teacher in study.teachers
    ]
    if any(source.name in (_A1, _A2) for source in study.sources):
        found += [_promptmix(study, cells, differences, teacher) for teacher in study.teachers]
    if len(study.teachers) > 1:
        found.append(_teachers(study, cells))
    found.append(_diversity(study, tables["diversity"].to_pylist()))
    return [table for table in found if table.rows]


def as_markdown(study: Study, tables: dict[str, pa.Table]) -> str:
    """All tables as Markdown."""
    parts = [f"# Study {study.name}"]
    for one in shown(study, tables):
        parts += [f"## {one.caption}", markdown_table(one.columns, one.rows), *([one.note] if one.note else [])]
    return "\n\n".join(parts) + "\n"


def _table_1(study: Study, cells: list[Row], differences: list[Row], student: str, teacher: str) -> Table:
    to_reference = [
        one for one in differences if one["reference"] == study.reference and one["reference_student"] != REGRESSION
    ]
    rows = [
        (task.name, title, *_scores(own), _interval(_of(to_reference, task.name, source.name, its, teacher)))
        for task, source, its, title, own in _rows(study, cells, student, teacher)
    ]
    reference = next(source.title for source in study.sources if source.name == study.reference)
    caption = f"Table 1: every source against {reference}, tasks from least to most subjective"
    if len(study.students) > 1 or len(study.teachers) > 1:
        caption += f" (student {student}, teacher {teacher})"
    repeats = "mean ± standard deviation over repeats" if study.repeats > 1 else "one repeat"
    unknown = [task.name for task in study.tasks if task.order_from == "not known"]
    order = f"; subjectivity not known: {', '.join(unknown)}" if unknown else ""
    return Table(
        caption,
        ("task", "source", "macro-F1", "accuracy", f"macro-F1 minus {reference}"),
        _task_once(rows),
        note=f"{repeats}; differences with their 95 % bootstrap interval{order}",
    )


def _promptmix(study: Study, cells: list[Row], differences: list[Row], teacher: str) -> Table:
    student = study.students[0]
    k_shot = {one["source"] for one in cells if one["student"] == REGRESSION}  # only these have a regression too
    rows = []
    for task, source, its, title, own in _rows(study, cells, student, teacher):
        baseline = _stronger([one for one in cells if one["task"] == task.name and one["source"] in k_shot], student)
        gain = [
            one
            for one in _of(differences, task.name, source.name, its, teacher)
            if one["reference_student"] == baseline and one["reference"] in k_shot
        ]
        changed = [one["share_changed"] for one in own]
        share = "" if source.name != _A2 or None in changed else f"{statistics.fmean(changed):.0%}"
        macro_f1, accuracy = _scores(own)
        texts = f"{statistics.fmean(one['texts'] for one in own):.0f}"
        rows.append((task.name, title, texts, accuracy, macro_f1, share, _interval(gain)))
    caption = "PromptMix: A1 and A2 are the accuracies without and with relabelling"
    caption += f" (teacher {teacher})" if len(study.teachers) > 1 else ""
    note = (
        "relabelled: share of texts with a changed class; gain: macro-F1 above the stronger k-shot baseline (by test)"
    )
    columns = ("task", "source", "texts", "accuracy", "macro-F1", "relabelled", "gain over k-shot")
    return Table(caption, columns, _task_once(rows), note=note)


def _stronger(k_shot: list[Row], student: str) -> str:
    """Which of the two k-shot baselines has the higher mean macro-F1 on the test split."""
    found = {its: [one["macro_f1"] for one in k_shot if one["student"] == its] for its in (student, REGRESSION)}
    means = {its: statistics.fmean(values) for its, values in found.items() if values}
    return max(means, key=lambda its: means[its]) if means else student


def _teachers(study: Study, cells: list[Row]) -> Table:
    rows = []
    students = (study.students[0], TEACHER_ALONE)
    for task in study.tasks:
        for source in study.sources:
            for teacher in study.teachers:
                key = (task.name, source.name, teacher)
                own = [
                    one
                    for one in cells
                    if (one["task"], one["source"], one["teacher"]) == key and one["student"] in students
                ]
                if own:
                    cost = f"${sum(one['cost_usd'] for one in own):.2f}"
                    rows.append((task.name, source.title, teacher, *_scores(own), cost))
    return Table("Teachers", ("task", "source", "teacher", "macro-F1", "accuracy", "cost"), rows)


def _diversity(study: Study, rows: list[Row]) -> Table:
    found = []
    for task in study.tasks:
        for source in study.sources:
            key = (task.name, source.name, None)
            own = [one for one in rows if (one["task"], one["source"], one["label"]) == key]
            if own:
                values = [_mean_of(own, "remote_clique"), _mean_of(own, "chamfer")]
                found.append((task.name, source.title, f"{statistics.fmean(one['texts'] for one in own):.0f}", *values))
    note = "cosine distance of sentence embeddings: mean to all others (Remote Clique) and to the nearest (Chamfer)"
    return Table("Diversity", ("task", "source", "texts", "Remote Clique", "Chamfer"), _task_once(found), note=note)


def _rows(
    study: Study, cells: Sequence[Row], student: str, teacher: str
) -> Iterator[tuple[StudyTask, StudySource, str, str, list[Row]]]:
    """(task, source, student, title, cells over the repeats) of ``student``, of the regression and of the teacher alone."""
    for task in study.tasks:
        for source in study.sources:
            for its in (student, REGRESSION, TEACHER_ALONE):
                if own := _of(cells, task.name, source.name, its, teacher):
                    yield task, source, its, source.title + (", regression" if its == REGRESSION else ""), own


def _of(rows: Sequence[Row], task: str, source: str, student: str, teacher: str) -> list[Row]:
    """Rows of a source. Sources that ask no teacher belong to every teacher's table."""
    return [
        one
        for one in rows
        if (one["task"], one["source"], one["student"]) == (task, source, student) and one["teacher"] in (teacher, None)
    ]


def _task_once(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows with a task's name on its first row only."""
    return [("" if i and rows[i - 1][0] == row[0] else row[0], *row[1:]) for i, row in enumerate(rows)]


def _scores(own: Sequence[Row]) -> tuple[str, str]:
    """Macro-F1 and accuracy, with the standard deviation over repeats."""
    words = []
    for measure in ("macro_f1", "accuracy"):
        mean, deviation = mean_and_deviation([one[measure] for one in own])
        words.append(f"{mean:.3f} ± {deviation:.3f}" if len(own) > 1 else f"{mean:.3f}")
    return words[0], words[1]


def _interval(differences: Sequence[Row]) -> str:
    if not differences:
        return ""
    one = differences[0]
    return f"{one['macro_f1']:+.3f} [{one['macro_f1_low']:+.3f}, {one['macro_f1_high']:+.3f}]"


def _mean_of(rows: Sequence[Row], name: str) -> str:
    values = [one[name] for one in rows if one[name] is not None]
    return f"{statistics.fmean(values):.3f}" if values else "-"
