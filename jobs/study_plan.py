"""What a study would ask before it asks: requests and cost by source, over all tasks and repeats."""

from __future__ import annotations

from collections.abc import Sequence

from actors.backends.identity import identify
from jobs import plan
from jobs.plan import StagePlan
from jobs.progress import format_usd
from jobs.study_cells import Cell
from jobs.terminal import Terminal
from potstill.relabelling import sample_questions
from potstill.renderers import choose_renderer


def confirm(cells: Sequence[Cell], terminal: Terminal, yes: bool) -> None:
    """Show what will be asked, and ask first where it may cost more than ``teacher.ask_above_usd``.

    Sources that share their requests are counted once each run's folder, though further requests that they share are
    not known beforehand. Raises ``InputError`` for a no.
    """
    asking = {cell.job.run.name: cell for cell in cells if cell.source.asks}
    if not asking:
        return
    by_source: dict[tuple[str, str], list[StagePlan]] = {}
    for cell in asking.values():
        by_source.setdefault((cell.source.title, cell.teacher or ""), []).extend(_stages(cell))
    totals = {key: plan.total(stages) for key, stages in by_source.items()}
    terminal.table(
        "to ask (about)",
        ["source", "teacher", "requests", "in the ledger", "prompt tokens", "cost"],
        [
            (
                source,
                teacher,
                f"{one.requests:,}",
                "-" if one.known is None else f"{one.known:,}",
                f"{one.prompt_tokens:,}",
                "price unknown" if one.cost_usd is None else format_usd(one.cost_usd),
            )
            for (source, teacher), one in totals.items()
        ],
    )
    for teacher in dict.fromkeys(teacher for _, teacher in totals):
        job = next(cell.job for cell in asking.values() if cell.teacher == teacher)
        plan.ask_first(job, [one for (_, name), one in totals.items() if name == teacher], yes)


def _stages(cell: Cell) -> list[StagePlan]:
    job = cell.job
    if cell.source.kind != "classifier":
        return plan.plan(job)
    identity = identify(job.config.teacher)
    renderer = choose_renderer(job.config.teacher.renderer, identity)
    each = sample_questions(job.task, job.data.seeds, job.config.relabel, identity, renderer, job.config.seed)
    return [plan.plan_stage("classify", each, plan.teacher_terms(job.config.teacher), times=len(job.data.test))]
