"""Stage 1: the teacher writes texts, and filters drop those that must not reach the student.

    potstill generate conf/trec6.yaml

Unlabelled texts come first, if the task has any: the teacher writes only for classes of which there seem to be too few
among them. Texts are counted after filtering. Classes that fall short are asked for again, in at most ``augment.max_rounds`` rounds;
what is still missing is reported. The n-th draw of a class does not depend on the others, so a later round continues
where the previous one stopped.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from actors.teachers.pool import TeacherPool
from jobs.run.job import Job
from jobs.runtime.progress import Meter
from jobs.stages.ask import Usage, ask
from potstill import strategies
from potstill.errors import StageError
from potstill.labels.answered import Answered
from potstill.labels.evidence import known_probs
from potstill.labels.prototypes import describe_classes
from potstill.labels.questions import Embeddings, seed_columns
from potstill.labels.resolution import REAL_KEPT
from potstill.prompts.render import texts_per_reply, to_requests
from potstill.rows import UNKNOWN, Example, Request, Sampling, example_id
from potstill.strategies.collected import collect_unlabelled
from potstill.strategies.contract import Collect
from potstill.texts import filters
from potstill.texts.parsing import CUT_SHORT

CUT_OFTEN = 0.2  # share of texts cut short above which we warn


@dataclass(frozen=True, slots=True)
class GenerateReport:
    """The result of generation. ``texts``: kept and dropped; ``dropped``: by reason, whether the parser or a filter
    dropped them; ``missing``: texts short of the target, by class."""

    usage: Usage
    rounds: int
    texts: int
    kept: int
    dropped: dict[str, int]
    missing: dict[str, int]


def plan_requests(job: Job, counts: Mapping[str, tuple[int, int]]) -> Iterator[Request]:
    """The requests for the draws [start, stop) of every class, made lazily."""
    augment = job.config.augment
    drafts = job.strategy.plan(job.task, job.data.seeds, augment, job.config.seed, counts)
    sampling = Sampling(augment.temperature, augment.top_p, augment.max_tokens)
    return to_requests(drafts, job.teacher, sampling, job.task.name, augment.strategy)


def next_counts(
    job: Job, examples: Sequence[Example], drawn: Mapping[str, int], real: Mapping[str, int] = MappingProxyType({})
) -> dict[str, tuple[int, int]]:
    """The draws to ask for next, for classes short of texts; ``drawn``: draws so far, ``real``: unlabelled texts that
    seem to be of the class, both by class."""
    augment = job.config.augment
    kept = collections.Counter(example.target_label for example in examples if example.kept)
    texts = {label: kept[label] + real.get(label, 0) for label in job.task.labels}
    expected = texts_per_reply(job.teacher.renderer, augment.texts_per_reply)
    return strategies.next_counts(job.task.labels, strategies.texts_wanted(augment), texts, drawn, expected)


def generate(job: Job, pool: TeacherPool) -> tuple[list[Example], GenerateReport]:
    """Run the stage; writes ``example/generated``. Raises ``StageError`` if a class has no usable text."""
    usage, rounds = Usage(), 0
    unread: collections.Counter[str] = collections.Counter()
    drawn: dict[str, int] = {}
    with job.terminal.stage("generate") as line, job.tracker.stage("generate") as record:
        meter = Meter(record.metrics)
        line.follow(meter.progress)
        collected = job.strategy.collect
        examples = _filter(job, _collect(job, collected or collect_unlabelled))
        real = _seem_to_be(job, examples) if collected is None else {}
        counts = next_counts(job, examples, drawn, real) if collected is None else {}
        while counts and rounds < job.config.augment.max_rounds:
            rounds += 1
            planned = sum(stop - start for start, stop in counts.values())
            requests = plan_requests(job, counts)
            answered, used = ask(job, pool, f"generate-{rounds}", requests, planned, meter)
            usage += used
            examples = _filter(job, examples + _parse(job, answered, unread))
            if rounds == 1:  # early enough to avoid further rounds
                _warn_of_cuts(job, unread[CUT_SHORT], len(examples) + unread.total())
            drawn |= {label: stop for label, (_, stop) in counts.items()}
            counts = next_counts(job, examples, drawn, real)
        report = _report(job, examples, unread, usage, rounds, real)
        job.run.write(Example, "generated", examples)
        job.run.write_json("generate", report)
        record.metrics({"texts": report.texts, "kept": report.kept, **usage_metrics(usage)})
        source = "collected" if collected is not None else f"from {usage.requests} replies"
        if collected is None and (count := sum(example.label == UNKNOWN for example in examples)):
            source += f" and {count} unlabelled ones"
        line.summary = f"kept {report.kept} of {report.texts} texts {source}{_dropped(report.dropped)}"
    kept = {example.target_label for example in examples if example.kept}
    empty = [label for label in job.task.labels if label not in kept]
    if any(example.kept and example.label == UNKNOWN for example in examples):
        empty = []  # which classes there are shows when they are labelled
    elif job.strategy.unlabelled:
        empty = ["any"]
    if empty:
        raise StageError(
            f"generate: no usable text for class {', '.join(map(repr, empty))}; see {job.run.path}/response"
        )
    if report.missing:
        short = ", ".join(f"{label} {count}" for label, count in report.missing.items())
        job.terminal.warn(
            f"after {rounds} rounds, texts missing to reach {strategies.texts_wanted(job.config.augment)} per class: {short}"
        )
    return examples, report


def usage_metrics(usage: Usage) -> dict[str, float]:
    """Usage by MLflow metric name."""
    return {
        "requests": usage.requests,
        "requests_new": usage.new_requests,
        "requests_reused": usage.reused_requests,
        "requests_failed": usage.failed,
        "retries": usage.retries,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost_usd": usage.cost_usd,
        "cost_usd_new": usage.new_cost_usd,
        "teacher_seconds": usage.seconds,
    }


def _seem_to_be(job: Job, examples: Sequence[Example]) -> dict[str, int]:
    """How many of the unlabelled texts that will be kept seem to be of each class, by seeds and class descriptions."""
    texts = [example.text for example in examples if example.kept]
    if not texts:
        return {}
    vectors = embed_texts(job, texts)
    best = known_probs(vectors, seed_columns(job.task, job.data.seeds)).argmax(axis=1)
    return {label: math.ceil(REAL_KEPT * (best == column).sum()) for column, label in enumerate(job.labels)}


def embed_texts(job: Job, texts: Sequence[str]) -> Embeddings:
    """Embeddings of the texts, and of what is known of the classes."""
    seeds = [seed.text for seed in job.data.seeds]
    return Embeddings(*job.embed(list(texts), seeds, [row.text for row in describe_classes(job.task)]))


def _collect(job: Job, collect: Collect) -> list[Example]:
    """The distinct texts that need not be written."""
    strategy = job.config.augment.strategy if job.strategy.collect else "annotate"
    written = dict.fromkeys(collect(job.task, job.data, job.config.augment, job.config.seed))
    return [
        Example(
            example_id=example_id(one.text, strategy),
            text=one.text,
            label=one.label or UNKNOWN,
            source=strategy,
            strategy=strategy,
            target_label=one.label,
        )
        for one in written
    ]


def _parse(job: Job, answered: Answered, unread: collections.Counter[str]) -> list[Example]:
    """The texts of all replies, in plan order; ``unread`` counts dropped lines by reason."""
    parse = job.strategy.parse
    columns = ("request_id", "strategy", "target_label", "mix_label", "alpha")
    examples = []
    for reply, finish_reason, *request in answered.rows("text", "finish_reason", *columns):
        if reply is None:
            continue
        request_id, strategy, target_label, mix_label, alpha = request
        read = parse(job.task, reply, finish_reason, target_label)
        unread.update(read.dropped)
        for one in read.texts:
            label = one.label or target_label
            examples.append(
                Example(
                    example_id=example_id(one.text, "generated", request_id),
                    text=one.text,
                    label=label,
                    strategy=strategy,
                    request_id=request_id,
                    target_label=label,
                    mix_label=mix_label,
                    alpha=alpha,
                )
            )
    return examples


def _filter(job: Job, examples: Sequence[Example]) -> list[Example]:
    seeds, test = [seed.text for seed in job.data.seeds], [row.text for row in job.data.test]
    return filters.drop(examples, seeds, test, alike=job.strategy.alike)


def _report(
    job: Job,
    examples: Sequence[Example],
    unread: collections.Counter[str],
    usage: Usage,
    rounds: int,
    real: Mapping[str, int],
) -> GenerateReport:
    kept = collections.Counter(example.target_label for example in examples if example.kept)
    wanted = strategies.texts_wanted(job.config.augment) if job.strategy.collect is None else 0
    have = {label: kept[label] + real.get(label, 0) for label in job.task.labels}
    missing = {label: wanted - count for label, count in have.items() if count < wanted}
    dropped = unread + collections.Counter(example.dropped_because for example in examples if example.dropped_because)
    texts = len(examples) + unread.total()
    standing = sum(example.kept for example in examples)
    return GenerateReport(usage, rounds, texts, standing, dict(dropped.most_common()), missing)


def _warn_of_cuts(job: Job, cut: int, texts: int) -> None:
    """Warn if many paid-for texts are dropped because ``augment.max_tokens`` cut them short."""
    if cut > CUT_OFTEN * texts:
        job.terminal.warn(
            f"{cut} of the first {texts} texts were cut short and dropped; raise augment.max_tokens = "
            f"{job.config.augment.max_tokens} (this asks all requests again)"
        )


def _dropped(dropped: Mapping[str, int]) -> str:
    return f" (dropped: {', '.join(f'{reason} {count}' for reason, count in dropped.items())})" if dropped else ""
