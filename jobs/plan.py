"""What a job would ask before it asks: requests, tokens, cost by stage, and what the ledger holds.

    potstill plan conf/trec6.yaml

Needs no cluster and loads no model; tokens are estimated from the characters (``potstill/cost.py``), about within a
fifth for English text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import typer
from rich.markup import escape

from actors.backends.identity import identify
from actors.ledger_database import NoLedgerError
from actors.ledger_store import LedgerStore
from jobs import generate
from jobs.job import Job, prepare
from jobs.progress import format_duration, format_usd
from jobs.terminal import Terminal
from potstill import strategies
from potstill.batch_files import WINDOW_S
from potstill.config import Config
from potstill.cost import FREE, Price, about_tokens, cost, expected_seconds, find_price, own_price, teacher_price
from potstill.errors import InputError, Problem
from potstill.relabelling import sample_questions
from potstill.renderers import choose_renderer
from potstill.rows import Request
from potstill.teachers import EmbeddedTeacher, OpenAITeacher, TeacherConfig

N = TypeVar("N", int, float)
FIRST_TOKEN_S, COMPLETION_TOKENS_PER_S = 0.5, 80.0  # what hosted models usually take for a reply
CHOICE_TOKENS = 16  # a class as structured output


@dataclass(frozen=True, slots=True)
class Terms:
    """What asking a teacher costs and how fast it may be asked.

    ``price`` is ``None`` where it is not known, ``concurrency`` where nobody can say how fast the teacher is.
    ``choice_tokens``: completion tokens of the answer to a question for a class. ``window_s``: within which a batch is
    answered, where the teacher is asked in batches.
    """

    price: Price | None
    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    choice_tokens: int = 0
    window_s: float | None = None


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage's requests; ``known`` of them are in the ledger (``None``: not to be known beforehand).

    ``cost_usd`` and ``seconds`` are for what the ledger lacks, at the tokens given; ``None``: not known.
    """

    stage: str
    requests: int
    known: int | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None = None
    seconds: float | None = None


def plan(job: Job) -> list[StagePlan]:
    """The stages that ask the teacher. Relabelling is an estimate: its texts are not written yet."""
    terms = teacher_terms(job.config.teacher)
    requests = generate.plan_requests(job, generate.next_counts(job, [], {}))
    tokens = {request.request_id: most_tokens(request, terms) for request in requests}
    stages = [plan_tokens("generate", list(tokens.values()), terms, known=count_known(job.config, list(tokens)))]
    if job.config.relabel.enabled:
        config, identity = job.config, identify(job.config.teacher)
        renderer = choose_renderer(config.teacher.renderer, identity)
        each = sample_questions(job.task, job.data.seeds, config.relabel, identity, renderer, config.seed)
        texts = strategies.texts_wanted(config.augment) * len(job.labels) + len(job.data.seeds)
        stages.append(plan_stage("relabel", each, terms, times=texts))
    return stages


def teacher_terms(teacher: TeacherConfig) -> Terms:
    """What ``teacher`` costs and how fast it may be asked. One in our own processes costs nothing; how fast it is
    depends on the cluster's cores or GPUs."""
    if isinstance(teacher, EmbeddedTeacher):
        return Terms(FREE)
    if teacher.mode == "batch":
        return Terms(teacher_price(teacher), choice_tokens=CHOICE_TOKENS, window_s=WINDOW_S)
    return http_terms(
        teacher.model,
        teacher.base_url,
        teacher.concurrency,
        teacher.requests_per_minute,
        teacher.tokens_per_minute,
        own_price(teacher),
    )


def http_terms(
    model: str,
    base_url: str,
    concurrency: int,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    price: Price | None = None,
) -> Terms:
    """The terms of an endpoint; ``price`` is the config's own, where it names one."""
    return Terms(find_price(model, base_url, price), concurrency, requests_per_minute, tokens_per_minute, CHOICE_TOKENS)


def plan_stage(
    stage: str, requests: Sequence[Request], terms: Terms, *, times: int = 1, known: int | None = None
) -> StagePlan:
    """Tokens, dollars and time of ``requests``, each of them ``times`` over, at their longest replies."""
    return plan_tokens(stage, [most_tokens(request, terms) for request in requests], terms, times=times, known=known)


def most_tokens(request: Request, terms: Terms) -> tuple[int, int]:
    """Tokens of the prompt (about) and of the longest reply."""
    return about_tokens(request.messages), terms.choice_tokens if request.choices else request.sampling.max_tokens


def plan_tokens(
    stage: str, each: Sequence[tuple[int, int]], terms: Terms, *, times: int = 1, known: int | None = None
) -> StagePlan:
    """``plan_stage`` of requests of which only ``most_tokens`` were kept."""
    count = times * len(each)
    prompt_tokens, completion_tokens = times * sum(p for p, _ in each), times * sum(c for _, c in each)
    new = count - (known or 0)
    share = new / count if count else 0.0
    dollars = seconds = None
    if terms.price is not None:
        dollars = share * times * sum(cost(terms.price, *tokens) for tokens in each)
    if terms.concurrency is not None:
        latency_s = FIRST_TOKEN_S + completion_tokens / max(count, 1) / COMPLETION_TOKENS_PER_S
        tokens = round(share * (prompt_tokens + completion_tokens))
        limits = (terms.requests_per_minute, terms.tokens_per_minute)
        seconds = expected_seconds(new, tokens, terms.concurrency, latency_s, *limits)
    if terms.window_s is not None:
        seconds = terms.window_s if new else 0.0
    return StagePlan(stage, count, known, prompt_tokens, completion_tokens, dollars, seconds)


def total(stages: Sequence[StagePlan]) -> StagePlan:
    """All stages as one; what is not known of one is not known of the whole."""
    return StagePlan(
        "total",
        sum(stage.requests for stage in stages),
        _sum([stage.known for stage in stages]),
        sum(stage.prompt_tokens for stage in stages),
        sum(stage.completion_tokens for stage in stages),
        _sum([stage.cost_usd for stage in stages]),
        _sum([stage.seconds for stage in stages]),
    )


def _sum(values: Sequence[N | None]) -> N | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(values) else None


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
        f"[bold]{escape(job.task.name)}[/]: {len(job.labels)} classes, {len(job.data.seeds)} seeds, "
        f"{len(job.data.test)} test texts; run {job.run.name}"
    )
    strategy = strategies.find(augment.strategy)
    how = f"with {augment.shots} shots" if strategy.collect is None else f"({strategy.says})"
    verb = "write" if strategy.collect is None else "collect"
    terminal.say(
        f"{augment.strategy} {how}: {strategies.texts_wanted(augment)} texts a class to {verb}, "
        f"the {augment.per_class} surest to keep"
    )
    print_stages(job, stages)


def print_stages(job: Job, stages: Sequence[StagePlan]) -> None:
    """Requests, tokens, cost and time by stage, and of which teacher."""
    identity, terminal = identify(job.config.teacher), job.terminal
    renderer = choose_renderer(job.config.teacher.renderer, identity)
    terminal.say(f"teacher {identity.model} ({identity.provider}), prompts put as {renderer}")
    terminal.table(
        "",
        [
            "stage",
            "requests",
            "in the ledger",
            "prompt tokens (about)",
            "completion tokens (at most)",
            "cost (about)",
            "time (about)",
        ],
        [_row(stage) for stage in ([*stages, total(stages)] if len(stages) > 1 else stages)],
    )
    if isinstance(job.config.teacher, OpenAITeacher) and job.config.teacher.mode == "batch":
        terminal.say(
            "asked in batches: times are the longest that the endpoint takes, usually it is far quicker; each stage "
            "waits for its batches, and what failed in one takes another"
        )
    if total(stages).cost_usd is None:
        terminal.say(
            f"no price of {job.config.teacher.model} is known, so only its tokens are counted; "
            "set teacher.price: {prompt, completion} in dollars per million tokens"
        )


def ask_first(job: Job, stages: Sequence[StagePlan], yes: bool) -> None:
    """Ask whether to go on where the plan costs more than ``teacher.ask_above_usd``. Raises ``InputError`` for a no,
    and where there is nobody to ask."""
    teacher, dollars = job.config.teacher, total(stages).cost_usd
    if yes or not isinstance(teacher, OpenAITeacher) or dollars is None or dollars <= teacher.ask_above_usd:
        return
    where = f"teacher.ask_above_usd = {teacher.ask_above_usd:g}"
    about = f"the job may cost about {format_usd(dollars)}"
    if not sys.stdin.isatty():
        raise InputError([Problem(where, f"{about}; say --yes to start it, or raise the limit")])
    if not typer.confirm(f"{about}. Start it?"):
        raise InputError([Problem(where, f"{about}; not started")])


def _row(stage: StagePlan) -> tuple[str, ...]:
    return (
        stage.stage,
        f"{stage.requests:,}" if stage.known is not None else f"about {stage.requests:,}",
        "-" if stage.known is None else f"{stage.known:,}",
        f"{stage.prompt_tokens:,}",
        f"{stage.completion_tokens:,}",
        "price unknown" if stage.cost_usd is None else format_usd(stage.cost_usd),
        "-" if stage.seconds is None else format_duration(stage.seconds),
    )
