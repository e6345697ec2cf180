"""The requests and cost of a study by source, over all tasks and repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs import plan
from jobs.plan import StagePlan
from jobs.runtime.terminal import Terminal
from jobs.study.cells import Cell


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """The requests of one source to one teacher about one task in one repeat."""

    cell: Cell
    stages: Sequence[StagePlan]


def plan_sources(cells: Sequence[Cell]) -> list[SourcePlan]:
    """One plan per run folder that needs the teacher, so sources that share a folder are counted once.

    Single requests that sources share are not known in advance, so the sum is an upper bound.
    """
    asking = {cell.job.run.name: cell for cell in cells if cell.source.asks}
    return [SourcePlan(cell, _stages(cell)) for cell in asking.values()]


def show(planned: Sequence[SourcePlan], terminal: Terminal, by_task: bool = False) -> None:
    """Print requests, tokens and cost by source, and on request by task."""
    by_source = [(one.cell.source.title, one) for one in planned]
    _print(by_source, terminal, "requests (about)", "source")
    if by_task:
        _print([(one.cell.task.name, one) for one in planned], terminal, "the same by task", "task")


def confirm(planned: Sequence[SourcePlan], yes: bool) -> None:
    """Ask for confirmation for each teacher that may cost more than its ``ask_above_usd``. Raises ``InputError`` if the
    answer is no."""
    for teacher, job in {one.cell.teacher: one.cell.job for one in planned}.items():
        plan.ask_first(job, [stage for one in planned if one.cell.teacher == teacher for stage in one.stages], yes)


def _print(named: Sequence[tuple[str, SourcePlan]], terminal: Terminal, title: str, column: str) -> None:
    groups: dict[tuple[str, str], list[StagePlan]] = {}
    for name, one in named:
        groups.setdefault((name, one.cell.teacher or ""), []).extend(one.stages)
    if len(groups) > 1:
        groups["total", ""] = [stage for _, one in named for stage in one.stages]
    rows = [(*key, *plan.row(plan.total(stages))[1:-1]) for key, stages in groups.items()]
    terminal.table(title, [column, "teacher", *plan.COLUMNS[1:-1]], rows)


def _stages(cell: Cell) -> list[StagePlan]:
    job = cell.job
    if cell.source.kind != "classifier":
        return plan.plan(job)
    terms = plan.teacher_terms(job.config.teacher)
    return [plan.plan_stage("classify", job.questions.sample(), terms, times=len(job.data.test))]
