"""Stage 1: the teacher writes texts, filters drop what must not reach the student.

    potstill generate conf/trec6.yaml

Texts are counted after the filters: classes that fall short are asked for more, at most
``augment.max_rounds`` times, and what is still missing is reported. The n-th draw of a class is the same
whatever else is asked, so a later round only goes on where the last one stopped.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.teachers.pool import TeacherPool
from jobs.run.folder import as_json
from jobs.run.job import Job
from jobs.runtime.progress import Meter
from jobs.stages.ask import Usage, ask
from potstill import strategies
from potstill.errors import StageError
from potstill.labels.answered import Answered
from potstill.prompts.render import texts_per_reply, to_requests
from potstill.rows import UNKNOWN, Example, Request, Sampling, example_id
from potstill.texts import filters
from potstill.texts.parsing import CUT_SHORT

CUT_OFTEN = 0.2  # share of the texts that were cut short from which on it is said


@dataclass(frozen=True, slots=True)
class GenerateReport:
    """What came out of generation; ``missing`` is by class, against what over-generation asked for.

    ``texts`` are the kept and the ``dropped``, which the parser took for none or a filter has marked.
    """

    usage: Usage
    rounds: int
    texts: int
    kept: int
    dropped: dict[str, int]
    missing: dict[str, int]


def plan_requests(job: Job, counts: Mapping[str, tuple[int, int]]) -> Iterator[Request]:
    """The requests for the draws [start, stop) of every class, each made when it is asked for."""
    augment = job.config.augment
    drafts = job.strategy.plan(job.task, job.data.seeds, augment, job.config.seed, counts)
    sampling = Sampling(augment.temperature, augment.top_p, augment.max_tokens)
    return to_requests(drafts, job.teacher, sampling, job.task.name, augment.strategy)


def next_counts(job: Job, examples: Sequence[Example], drawn: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """The draws to ask for next, by class that is short of texts; ``drawn`` is how many each has had."""
    augment = job.config.augment
    kept = collections.Counter(example.target_label for example in examples if example.kept)
    texts = {label: kept[label] for label in job.task.labels}
    expected = texts_per_reply(job.teacher.renderer, augment.texts_per_reply)
    return strategies.next_counts(job.task.labels, strategies.texts_wanted(augment), texts, drawn, expected)


def generate(job: Job, pool: TeacherPool) -> tuple[list[Example], GenerateReport]:
    """Run the stage; writes ``example/generated``. Raises ``StageError`` if a class got no text at all."""
    examples: list[Example] = []
    usage, rounds = Usage(), 0
    unread: collections.Counter[str] = collections.Counter()
    drawn: dict[str, int] = {}
    counts = next_counts(job, examples, drawn)
    with job.terminal.stage("generate") as line, job.tracker.stage("generate") as record:
        meter = Meter(record.metrics)
        line.follow(meter.progress)
        collected = job.strategy.collect
        if collected is not None:
            examples, counts = _filter(job, _collect(job)), {}
        while counts and rounds < job.config.augment.max_rounds:
            rounds += 1
            planned = sum(stop - start for start, stop in counts.values())
            requests = plan_requests(job, counts)
            answered, used = ask(job, pool, f"generate-{rounds}", requests, planned, meter)
            usage += used
            examples = _filter(job, examples + _parse(job, answered, unread))
            if rounds == 1:  # while the rounds to come can still be spared
                _warn_of_cuts(job, unread[CUT_SHORT], len(examples) + unread.total())
            drawn |= {label: stop for label, (_, stop) in counts.items()}
            counts = next_counts(job, examples, drawn)
        report = _report(job, examples, unread, usage, rounds)
        job.run.write(Example, "generated", examples)
        job.run.write_json("generate", as_json(report))
        record.metrics({"texts": report.texts, "kept": report.kept, **usage_metrics(usage)})
        source = "that no teacher wrote" if collected is not None else f"in {usage.requests} replies"
        line.summary = f"{report.kept} texts kept of {report.texts} {source}{_dropped(report.dropped)}"
    unlabelled = job.strategy.unlabelled
    empty = [label for label in job.task.labels if not any(e.kept and e.target_label == label for e in examples)]
    if unlabelled:
        empty = [] if any(example.kept for example in examples) else ["any"]
    if empty:
        raise StageError(
            f"generate: no usable text for class {', '.join(map(repr, empty))}; see {job.run.path}/response"
        )
    if report.missing:
        short = ", ".join(f"{label} {count}" for label, count in report.missing.items())
        job.terminal.warn(
            f"after {rounds} rounds still short of {strategies.texts_wanted(job.config.augment)} texts a class: {short}"
        )
    return examples, report


def usage_metrics(usage: Usage) -> dict[str, float]:
    """Usage under the names that MLflow shows."""
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


def _collect(job: Job) -> list[Example]:
    """The texts of a strategy that asks no teacher to write, each once."""
    strategy = job.config.augment.strategy
    collect = strategies.find(strategy).collect
    assert collect is not None
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
    """Every utterance of every reply, in the order of the plan; ``unread`` counts the lines that were taken for none."""
    parse = job.strategy.parse
    told = ("request_id", "strategy", "target_label", "mix_label", "alpha")
    examples = []
    for reply, finish_reason, *request in answered.rows("text", "finish_reason", *told):
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
    job: Job, examples: Sequence[Example], unread: collections.Counter[str], usage: Usage, rounds: int
) -> GenerateReport:
    kept = collections.Counter(example.target_label for example in examples if example.kept)
    # Who collects texts takes what there is.
    collects = job.strategy.collect is not None
    wanted = 0 if collects else strategies.texts_wanted(job.config.augment)
    missing = {label: wanted - kept[label] for label in job.task.labels if kept[label] < wanted}
    dropped = unread + collections.Counter(example.dropped_because for example in examples if example.dropped_because)
    texts = len(examples) + unread.total()
    return GenerateReport(usage, rounds, texts, sum(kept.values()), dict(dropped.most_common()), missing)


def _warn_of_cuts(job: Job, cut: int, texts: int) -> None:
    """Say that much of what is paid for is thrown away, since the teacher was not let to end it."""
    if cut > CUT_OFTEN * texts:
        job.terminal.warn(
            f"{cut} of the first {texts} texts were cut short and dropped; raise augment.max_tokens = "
            f"{job.config.augment.max_tokens} (what was asked with it is then asked anew)"
        )


def _dropped(dropped: Mapping[str, int]) -> str:
    return f" (dropped: {', '.join(f'{reason} {count}' for reason, count in dropped.items())})" if dropped else ""
