"""What a study would ask before it asks: requests and cost by source, over all tasks and repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs import plan
from jobs.plan import StagePlan
from jobs.run.job import Job
from jobs.runtime.progress import format_usd
from jobs.runtime.terminal import Terminal
from jobs.study.cells import Cell


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """What one source asks one teacher about one task in one repeat."""

    job: Job
    task: str
    source: str
    teacher: str
    stages: tuple[StagePlan, ...]


def plan_sources(cells: Sequence[Cell]) -> list[SourcePlan]:
    """One for each run's folder that asks: sources that share it are counted once.

    Further requests that sources share are not known beforehand, so the sum is at most too high.
    """
    asking = {cell.job.run.name: cell for cell in cells if cell.source.asks}
    return [
        SourcePlan(cell.job, cell.task.name, cell.source.title, cell.teacher or "", tuple(_stages(cell)))
        for cell in asking.values()
    ]


def show(planned: Sequence[SourcePlan], terminal: Terminal, by_task: bool = False) -> None:
    """Requests, tokens and cost by source, and by task where that is wanted."""
    _print(planned, terminal, "to ask (about)", ("source", "teacher"))
    if by_task:
        _print(planned, terminal, "the same by task", ("task", "teacher"))


def confirm(planned: Sequence[SourcePlan], yes: bool) -> None:
    """Ask first where a teacher may cost more than its ``ask_above_usd``. Raises ``InputError`` for a no."""
    for teacher, job in {one.teacher: one.job for one in planned}.items():
        plan.ask_first(job, [stage for one in planned if one.teacher == teacher for stage in one.stages], yes)


def _print(planned: Sequence[SourcePlan], terminal: Terminal, title: str, columns: tuple[str, str]) -> None:
    groups: dict[tuple[str, ...], list[StagePlan]] = {}
    for one in planned:
        groups.setdefault(tuple(getattr(one, column) for column in columns), []).extend(one.stages)
    if len(groups) > 1:
        groups["total", ""] = [stage for one in planned for stage in one.stages]
    terminal.table(
        title,
        [*columns, "requests", "in the ledger", "prompt tokens", "cost"],
        [(*key, *_row(plan.total(stages))) for key, stages in groups.items()],
    )


def _row(one: StagePlan) -> tuple[str, ...]:
    return (
        f"{one.requests:,}",
        "-" if one.known is None else f"{one.known:,}",
        f"{one.prompt_tokens:,}",
        "price unknown" if one.cost_usd is None else format_usd(one.cost_usd),
    )


def _stages(cell: Cell) -> list[StagePlan]:
    job = cell.job
    if cell.source.kind != "classifier":
        return plan.plan(job)
    return [
        plan.plan_stage(
            "classify", job.questions.sample(), plan.teacher_terms(job.config.teacher), times=len(job.data.test)
        )
    ]
