"""The plan of a job: requests, tokens and cost by stage, and what the ledger already holds.

    potstill plan conf/trec6.yaml

Needs no cluster and loads no model. Tokens are estimated from characters (``potstill/endpoint/cost.py``), within about
20 % for English text.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import typer
from rich.markup import escape

from actors.inference.embedder import PACKAGED
from actors.ledger.database import NoLedgerError
from actors.ledger.store import LedgerStore
from jobs.run.job import Job, prepare
from jobs.runtime.progress import format_duration, format_usd
from jobs.runtime.terminal import Terminal
from jobs.stages import generate
from potstill import strategies
from potstill.config import Config
from potstill.config.teacher import EmbeddedTeacher, OpenAITeacher, TeacherConfig
from potstill.endpoint.batch_files import WINDOW_S
from potstill.endpoint.chat import REASONING_TOKENS, reasons
from potstill.endpoint.cost import (
    FREE,
    Price,
    about_tokens,
    cost,
    expected_seconds,
    find_price,
    own_price,
    teacher_price,
)
from potstill.errors import InputError, Problem
from potstill.labels.resolution import REAL_KEPT
from potstill.rows import Example, Request
from potstill.task import Task

ASKING = ("generate", "relabel")  # the stages that ask the teacher
N = TypeVar("N", int, float)
FIRST_TOKEN_S, COMPLETION_TOKENS_PER_S = 0.5, 80.0  # typical of hosted models
CHOICE_TOKENS = 16  # a class as structured output
TOKENS = ("prompt tokens (about)", "completion tokens (at most)")
COLUMNS = ("stage", "requests", "in the ledger", *TOKENS, "cost (about)", "time (about)")


@dataclass(frozen=True, slots=True)
class Terms:
    """Price and rate limits of a teacher.

    ``price`` and ``concurrency`` are None if unknown. ``choice_tokens``: completion tokens of the answer to a
    classification question; ``window_s``: the longest time a batch takes, in batch mode; ``thinking_tokens``: reasoning
    tokens before a reply.
    """

    price: Price | None
    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    choice_tokens: int = 0
    window_s: float | None = None
    thinking_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage's requests; ``known`` of them are in the ledger (None: unknown before the stage runs).

    ``cost_usd`` and ``seconds`` cover the requests missing in the ledger; None if unknown.
    """

    stage: str
    requests: int
    known: int | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None = None
    seconds: float | None = None


def plan(job: Job, stages: Sequence[str] = ASKING) -> list[StagePlan]:
    """Plan those of ``stages`` that ask the teacher. Relabelling is an estimate until its texts exist.

    Raises ``InputError`` if relabelling is planned alone and nothing was generated.
    """
    terms = teacher_terms(job.config.teacher)
    planned = []
    if "generate" in stages:
        requests = generate.plan_requests(job, generate.next_counts(job, [], {}, _real(job)))
        tokens = {request.request_id: most_tokens(request, terms) for request in requests}
        known = count_known(job.config, list(tokens))
        planned.append(plan_tokens("generate", list(tokens.values()), terms, known=known))
    if "relabel" in stages and job.config.relabel.enabled:
        whole = bool(planned) and planned[0].known == planned[0].requests
        generated = not planned or (whole and job.run.has_file("example/generated.parquet"))
        planned.append(_plan_relabel(job, terms, generated))
    return planned


def _plan_relabel(job: Job, terms: Terms, generated: bool) -> StagePlan:
    """The questions about the generated texts, or about as many as will be generated.

    The request table of an earlier run says which are in the ledger; rendering them again would need embeddings.
    """
    config, each = job.config, job.questions.sample()
    wanted, known = strategies.texts_wanted(config.augment), None
    written = {label: max(0, wanted - _real(job).get(label, 0)) for label in job.labels}
    texts = sum(written.values()) + _unlabelled(job)
    if generated:
        texts = sum(example.kept for example in job.run.read(Example, "generated"))
        if job.run.has_file("request/relabel.parquet"):
            with job.run.open_table("request", "relabel") as table:
                asked = table.read(["request_id"])["request_id"].to_pylist()
            known = count_known(config, asked)
    return plan_stage("relabel", each, terms, times=job.questions.times(texts) + job.teacher_tests, known=known)


def _real(job: Job) -> dict[str, int]:
    """Unlabelled texts that will be kept, as if they were as many of each class: which are, only their embeddings tell."""
    each = math.ceil(REAL_KEPT * _unlabelled(job) / len(job.labels))
    return dict.fromkeys(job.labels, each) if each else {}


def _unlabelled(job: Job) -> int:
    return 0 if job.strategy.collect else min(job.config.augment.unlabelled, len(job.data.unlabelled))


def teacher_terms(teacher: TeacherConfig) -> Terms:
    """The terms of a teacher. An embedded one costs nothing, and its speed depends on the cluster's cores or GPUs."""
    if isinstance(teacher, EmbeddedTeacher):
        return Terms(FREE)
    thinking = REASONING_TOKENS if reasons(teacher.model) else 0
    if teacher.mode == "batch":
        return Terms(teacher_price(teacher), choice_tokens=CHOICE_TOKENS, window_s=WINDOW_S, thinking_tokens=thinking)
    return Terms(
        find_price(teacher.model, teacher.base_url, own_price(teacher)),
        teacher.concurrency,
        teacher.requests_per_minute,
        teacher.tokens_per_minute,
        CHOICE_TOKENS,
        thinking_tokens=thinking,
    )


def plan_stage(
    stage: str, requests: Sequence[Request], terms: Terms, *, times: int = 1, known: int | None = None
) -> StagePlan:
    """Tokens, dollars and time of ``requests``, each ``times`` times, with the longest replies."""
    return plan_tokens(stage, [most_tokens(request, terms) for request in requests], terms, times=times, known=known)


def most_tokens(request: Request, terms: Terms) -> tuple[int, int]:
    """Tokens of the prompt (estimated) and of the longest reply."""
    longest = terms.choice_tokens if request.choices else request.sampling.max_tokens
    return about_tokens(request.messages), longest + terms.thinking_tokens


def plan_tokens(
    stage: str, each: Sequence[tuple[int, int]], terms: Terms, *, times: int = 1, known: int | None = None
) -> StagePlan:
    """``plan_stage`` from the ``most_tokens`` of each request."""
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
    """The sum over stages; a number is None if any stage's is None."""
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
    """The number of requests in the ledger. Does not create a missing ledger."""
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
    """Print the job and its plan."""
    augment, terminal = job.config.augment, job.terminal
    terminal.say(
        f"[bold]{escape(job.task.name)}[/]: {len(job.labels)} classes, {len(job.data.seeds)} seeds, "
        f"{len(job.data.test)} test texts; run {job.run.name}"
    )
    strategy = job.strategy
    how = f"with {augment.shots} shots" if strategy.collect is None else f"({strategy.description})"
    verb = "write" if strategy.collect is None else "collect"
    if real := _unlabelled(job):
        terminal.say(f"{real} unlabelled texts to label, and texts to write for classes that they lack:")
    terminal.say(
        f"{augment.strategy} {how}: {strategies.texts_wanted(augment)} texts a class to {verb}, "
        f"the {augment.per_class} surest to keep"
    )
    if job.task.licence != Task.model_fields["licence"].default:
        terminal.say(f"licence of the task's texts: {escape(job.task.licence)}")
    for remark in remarks(job):
        terminal.warn(remark)
    print_stages(job, stages)


def print_stages(job: Job, stages: Sequence[StagePlan]) -> None:
    """Print the teacher, and requests, tokens, cost and time by stage."""
    identity, terminal = job.teacher.identity, job.terminal
    terminal.say(f"teacher {identity.model} ({identity.provider}), prompts rendered as {job.teacher.renderer}")
    terminal.table(
        "",
        COLUMNS,
        [row(stage) for stage in ([*stages, total(stages)] if len(stages) > 1 else stages)],
    )
    if isinstance(job.config.teacher, OpenAITeacher) and job.config.teacher.mode == "batch":
        terminal.say(
            "batch mode: times are upper bounds, and batches usually end far earlier; each stage waits for its batches, "
            "and failed requests need another batch"
        )
    if total(stages).cost_usd is None:
        terminal.say(
            f"the price of {job.config.teacher.model} is unknown, so only tokens are counted; "
            "set teacher.price: {prompt, completion} in dollars per million tokens"
        )


def remarks(job: Job) -> list[str]:
    """Warnings about a task: unused seeds, a language that the built-in models know poorly."""
    config, task = job.config, job.task
    found = []
    unused = len(task.seeds) - len(job.data.seeds)
    if task.seeds and unused > 0:
        found.append(
            f"task.seeds_per_class = {config.task.seeds_per_class}: {unused} of the task's {len(task.seeds)} seeds are not "
            "used; raise it to use them"
        )
    if task.language.split("-")[0].lower() not in ("en", "eng", "english"):
        english = ["the sentence encoder behind class descriptions and the regression baseline"]
        english += ["the embedded teacher"] if isinstance(config.teacher, EmbeddedTeacher) else []
        english += ["the embedded student"] if config.student.model == PACKAGED else []
        found.append(
            f"the task's language is {task.language!r}, but these are best in English: {', '.join(english)}; set "
            "relabel.descriptions to 0, and teacher and student.model to models of that language"
        )
    return found


def ask_first(job: Job, stages: Sequence[StagePlan], yes: bool) -> None:
    """Ask for confirmation if the plan costs more than ``teacher.ask_above_usd``. Raises ``InputError`` if the answer is
    no, and if standard input is not a terminal."""
    teacher, dollars = job.config.teacher, total(stages).cost_usd
    if yes or not isinstance(teacher, OpenAITeacher) or dollars is None:
        return
    about = f"the job may cost about {format_usd(dollars)}"
    if teacher.budget_usd is not None and teacher.budget_usd < dollars:
        about = f"the job may spend all of its budget of {format_usd(teacher.budget_usd)}"
        dollars = teacher.budget_usd
    if dollars <= teacher.ask_above_usd:
        return
    where = f"teacher.ask_above_usd = {teacher.ask_above_usd:g}"
    if not sys.stdin.isatty():
        raise InputError([Problem(where, f"{about}; use --yes to start it, or raise the limit")])
    if not typer.confirm(f"{about}. Start it?"):
        raise InputError([Problem(where, f"{about}; not started")])


def row(stage: StagePlan) -> tuple[str, ...]:
    """The table row of a stage."""
    return (
        stage.stage,
        f"{stage.requests:,}" if stage.known is not None else f"about {stage.requests:,}",
        "-" if stage.known is None else f"{stage.known:,}",
        f"{stage.prompt_tokens:,}",
        f"{stage.completion_tokens:,}",
        "price unknown" if stage.cost_usd is None else format_usd(stage.cost_usd),
        "-" if stage.seconds is None else format_duration(stage.seconds),
    )
