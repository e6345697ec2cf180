"""What a job would ask before it asks: requests, tokens, cost by stage, and what the ledger holds.

    potstill plan conf/trec6.yaml

Needs no cluster and loads no model; tokens are estimated at ``CHARACTERS_PER_TOKEN``, within a fifth for
English text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.backends.embedded import identify
from actors.ledger_database import NoLedgerError
from actors.ledger_store import LedgerStore
from jobs import generate
from jobs.job import Job, prepare
from jobs.terminal import Terminal
from potstill import strategies
from potstill.config import Config
from potstill.relabelling import sample_questions
from potstill.renderers import choose_renderer
from potstill.rows import Request

CHARACTERS_PER_TOKEN = 4.2


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage's requests; ``known`` of them are in the ledger (``None``: not to be known beforehand)."""

    stage: str
    requests: int
    known: int | None
    prompt_tokens: int
    completion_tokens: int


def plan(job: Job) -> list[StagePlan]:
    """The stages that ask the teacher. Relabelling is an estimate: its texts are not written yet."""
    requests = generate.plan_requests(job, generate.next_counts(job, [], {}))
    distinct = {request.request_id: request for request in requests}
    texts = strategies.texts_wanted(job.config.augment) * len(job.labels)
    stages = [
        StagePlan(
            "generate",
            len(distinct),
            count_known(job.config, list(distinct)),
            _prompt_tokens(list(distinct.values())),
            sum(request.sampling.max_tokens for request in distinct.values()),
        )
    ]
    if job.config.relabel.enabled:
        config, identity = job.config, identify(job.config.teacher)
        renderer = choose_renderer(config.teacher.renderer, identity)
        each = sample_questions(job.task, job.data.seeds, config.relabel, identity, renderer, config.seed)
        asked = texts + len(job.data.seeds)
        stages.append(StagePlan("relabel", asked * len(each), None, asked * _prompt_tokens(each), 0))
    return stages


def count_known(config: Config, request_ids: Sequence[str]) -> int:
    """How many requests the ledger holds; one that does not exist yet is not made."""
    try:
        store = LedgerStore(config.ledger.uri, create=False)
    except NoLedgerError:
        return 0
    try:
        return store.count_known(request_ids)
    finally:
        store.close()


def show(config: Config) -> None:
    """Print the plan of a config."""
    terminal = Terminal()
    job = prepare(config, terminal)
    print_plan(job, plan(job))


def print_plan(job: Job, stages: Sequence[StagePlan]) -> None:
    """What will be asked, as a small table."""
    augment, terminal = job.config.augment, job.terminal
    terminal.say(
        f"[bold]{job.task.name}[/]: {len(job.labels)} classes, {len(job.data.seeds)} seeds, "
        f"{len(job.data.test)} test texts; run {job.run.name}"
    )
    terminal.say(
        f"{augment.strategy} with {augment.shots} shots: {strategies.texts_wanted(augment)} texts a class to write, "
        f"the {augment.per_class} surest to keep"
    )
    rows = [
        (
            stage.stage,
            f"{stage.requests:,}" if stage.known is not None else f"about {stage.requests:,}",
            "-" if stage.known is None else f"{stage.known:,}",
            f"{stage.prompt_tokens:,}",
            f"{stage.completion_tokens:,}",
            "$0.00",
        )
        for stage in stages
    ]
    terminal.table(
        "", ["stage", "requests", "in the ledger", "prompt tokens (about)", "completion tokens (at most)", "cost"], rows
    )


def _prompt_tokens(requests: Sequence[Request]) -> int:
    characters = sum(len(message.content) for request in requests for message in request.messages)
    return round(characters / CHARACTERS_PER_TOKEN)
