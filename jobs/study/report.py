"""A study's tables for the terminal, Markdown and MLflow, made from its Parquet tables."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from rich.markup import escape

from jobs.report.content import Table, markdown_table
from jobs.runtime.terminal import Terminal
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


def print_tables(terminal: Terminal, study: Study, tables: dict[str, pa.Table]) -> None:
    """Print all tables, each with its note."""
    for one in shown(study, tables):
        terminal.say()
        terminal.table(one.caption, one.columns, one.rows, left=2)
        if one.note:
            terminal.say(one.note)


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
    """Table 1 of Li et al., the PromptMix table, teachers and diversity, as far as the study has their rows."""
    cells, differences = tables["cells"].to_pylist(), tables["differences"].to_pylist()
    found = [
        _table_1(study, cells, differences, student, teacher)
        for student, teacher in itertools.product(study.students, study.teachers)
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
        (task.name, title, *_scores(own), _gain(_of(to_reference, task.name, source.name, classifier, teacher)))
        for task, source, classifier, title, own in _rows(study, cells, student, teacher)
    ]
    reference = title_of(study, study.reference)
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
    k_shot = {one["source"] for one in cells if one["student"] == REGRESSION}  # other sources have no regression
    rows = []
    for task, source, classifier, title, own in _rows(study, cells, student, teacher):
        baseline = _stronger([one for one in cells if one["task"] == task.name and one["source"] in k_shot], student)
        gain = [
            one
            for one in _of(differences, task.name, source.name, classifier, teacher)
            if one["reference_student"] == baseline and one["reference"] in k_shot
        ]
        changed = [one["share_changed"] for one in own]
        share = "" if source.name != _A2 or None in changed else f"{statistics.fmean(changed):.0%}"
        macro_f1, accuracy = _scores(own)
        texts = f"{statistics.fmean(one['texts'] for one in own):.0f}"
        rows.append((task.name, title, texts, accuracy, macro_f1, share, _gain(gain)))
    caption = "PromptMix: A1 and A2 are the accuracies without and with relabelling"
    caption += f" (teacher {teacher})" if len(study.teachers) > 1 else ""
    note = (
        "relabelled: share of texts with a changed class; gain: macro-F1 above the stronger k-shot baseline (by test)"
    )
    columns = ("task", "source", "texts", "accuracy", "macro-F1", "relabelled", "gain over k-shot")
    return Table(caption, columns, _task_once(rows), note=note)


def _stronger(k_shot: list[Row], student: str) -> str:
    """The k-shot baseline with the higher mean macro-F1 on the test split: ``student`` or the regression."""
    found = {name: [one["macro_f1"] for one in k_shot if one["student"] == name] for name in (student, REGRESSION)}
    return max(found, key=lambda name: statistics.fmean(found[name] or [0.0]))


def _teachers(study: Study, cells: list[Row]) -> Table:
    students = (study.students[0], TEACHER_ALONE)
    found = group([one for one in cells if one["student"] in students], "task", "source", "teacher")
    rows = [
        (task.name, source.title, teacher, *_scores(own), f"${sum(one['cost_usd'] for one in own):.2f}")
        for task, source, teacher in itertools.product(study.tasks, study.sources, study.teachers)
        if (own := found[task.name, source.name, teacher])
    ]
    return Table("Teachers", ("task", "source", "teacher", "macro-F1", "accuracy", "cost"), rows)


def _diversity(study: Study, rows: list[Row]) -> Table:
    of_source = group([one for one in rows if one["label"] is None], "task", "source")
    shown = []
    for task, source in itertools.product(study.tasks, study.sources):
        if own := of_source[task.name, source.name]:
            texts = f"{statistics.fmean(one['texts'] for one in own):.0f}"
            shown.append((task.name, source.title, texts, _mean_of(own, "remote_clique"), _mean_of(own, "chamfer")))
    note = "cosine distance of sentence embeddings: mean to all others (Remote Clique) and to the nearest (Chamfer)"
    return Table("Diversity", ("task", "source", "texts", "Remote Clique", "Chamfer"), _task_once(shown), note=note)


def _rows(
    study: Study, cells: Sequence[Row], student: str, teacher: str
) -> Iterator[tuple[StudyTask, StudySource, str, str, list[Row]]]:
    """(task, source, classifier, title, cells of all repeats) for ``student``, the regression and the teacher alone."""
    classifiers = (student, REGRESSION, TEACHER_ALONE)
    for task, source, name in itertools.product(study.tasks, study.sources, classifiers):
        if own := _of(cells, task.name, source.name, name, teacher):
            yield task, source, name, source.title + (", regression" if name == REGRESSION else ""), own


def _of(rows: Sequence[Row], task: str, source: str, student: str, teacher: str) -> list[Row]:
    """Rows of a source and student. Sources that need no teacher are in every teacher's table."""
    return [
        one
        for one in rows
        if (one["task"], one["source"], one["student"]) == (task, source, student) and one["teacher"] in (teacher, None)
    ]


def title_of(study: Study, name: str) -> str:
    """The title of a source."""
    return next((source.title for source in study.sources if source.name == name), name)


def group(rows: Sequence[Row], *columns: str) -> defaultdict[tuple[Any, ...], list[Row]]:
    """The rows by their values in ``columns``."""
    found = defaultdict(list)
    for row in rows:
        found[tuple(row[column] for column in columns)].append(row)
    return found


def _task_once(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows with each task's name only on its first row."""
    return [("" if i and rows[i - 1][0] == row[0] else row[0], *row[1:]) for i, row in enumerate(rows)]


def _scores(own: Sequence[Row]) -> tuple[str, str]:
    """Macro-F1 and accuracy, with the standard deviation over repeats."""
    words = []
    for measure in ("macro_f1", "accuracy"):
        mean, deviation = mean_and_deviation([one[measure] for one in own])
        words.append(f"{mean:.3f} ± {deviation:.3f}" if len(own) > 1 else f"{mean:.3f}")
    return words[0], words[1]


def gain_in_words(row: Row) -> str:
    """A difference in macro-F1 with its interval."""
    return f"{row['macro_f1']:+.3f} [{row['macro_f1_low']:+.3f}, {row['macro_f1_high']:+.3f}]"


def _gain(differences: Sequence[Row]) -> str:
    return gain_in_words(differences[0]) if differences else ""


def _mean_of(rows: Sequence[Row], name: str) -> str:
    values = [one[name] for one in rows if one[name] is not None]
    return f"{statistics.fmean(values):.3f}" if values else "-"
