"""Stage 2: the teacher says what class its texts are of; evidence decides which of them the student sees.

    potstill relabel RUN

The teacher is asked the same about the labelled seeds (each left out of its own prompt), so the run can say
how far it is to be trusted; where relabelling everything would do harm, it is not done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from actors.teachers.pool import TeacherPool
from jobs.run.folder import as_json
from jobs.run.job import Job
from jobs.runtime.progress import Meter
from jobs.stages.ask import Usage, ask
from jobs.stages.diversity import as_rows
from jobs.stages.generate import usage_metrics
from potstill.labels.prototypes import class_texts
from potstill.labels.questions import Embeddings
from potstill.labels.resolution import RelabelReport, Resolution, resolve
from potstill.rows import Example, Request


@dataclass(frozen=True, slots=True)
class Relabelled:
    """What the stage leaves in ``relabel.json``."""

    usage: Usage
    report: RelabelReport


def relabel(job: Job, pool: TeacherPool) -> Resolution:
    """Run the stage; writes ``example/relabelled`` (every text, also those that were dropped)."""
    generated = job.run.read(Example, "generated")
    standing = [example for example in generated if example.kept]
    with job.terminal.stage("relabel") as line, job.tracker.stage("relabel") as record:
        line.note("embedding")
        vectors = _embed(job, standing)
        requests, checks = plan_requests(job, standing, vectors) if job.config.relabel.enabled else ((), [])
        meter = Meter(record.metrics)
        line.follow(meter.progress)
        expected = len(checks) + count_requests(job, len(standing))
        planned = chain(checks, requests)
        answered, usage = ask(job, pool, "relabel", planned, expected, meter)
        of_seeds, of_texts = answered.slice(0, len(checks)), answered.slice(len(checks))
        per_class = job.config.augment.per_class
        resolution = resolve(job.questions, standing, of_texts, of_seeds, vectors, per_class)
        report = resolution.report
        request_ids = of_texts.plan["request_id"].to_pylist()
        resolution = replace(resolution, examples=name_requests(resolution.examples, request_ids))
        resolved = {example.example_id: example for example in resolution.examples}
        job.run.write(Example, "relabelled", [resolved.get(example.example_id, example) for example in generated])
        job.run.write_json("relabel", as_json(Relabelled(usage, report)))
        job.run.write_json("diversity", _diversity(job, resolution, vectors.texts))
        record.metrics({**usage_metrics(usage), **_metrics(report)})
        line.summary = _summary(report)
    for warning in report.warnings:
        job.terminal.warn(warning)
    short = [f"{label} {count}" for label, count in report.kept_per_class if count < job.config.augment.per_class]
    if short:
        wanted = job.config.augment.per_class
        job.terminal.warn(
            f"fewer than augment.per_class = {wanted} texts kept: {', '.join(short)}; raise augment.over_generate"
        )
    return resolution


def name_requests(examples: Sequence[Example], request_ids: Sequence[str]) -> tuple[Example, ...]:
    """Every example with the request of its first vote; the others of its text follow that one in the plan."""
    if not request_ids:
        return tuple(examples)
    each, rest = divmod(len(request_ids), len(examples))
    assert not rest, f"{len(request_ids)} requests about {len(examples)} texts"
    return tuple(
        replace(example, relabel_request_id=name) for example, name in zip(examples, request_ids[::each], strict=True)
    )


def count_requests(job: Job, texts: int) -> int:
    """How many questions there are about so many texts."""
    relabel = job.config.relabel
    return relabel.votes * texts if relabel.enabled else 0


def plan_requests(
    job: Job, examples: Sequence[Example], vectors: Embeddings
) -> tuple[Iterator[Request], list[Request]]:
    """The questions about the texts, each made when it is asked for, and the same about the seeds."""
    texts = [example.text for example in examples]
    return job.questions.about_texts(texts, vectors), job.questions.about_seeds(vectors)


def _embed(job: Job, examples: Sequence[Example]) -> Embeddings:
    return Embeddings(
        *job.embed(
            [example.text for example in examples],
            [seed.text for seed in job.data.seeds],
            class_texts(job.task),
        )
    )


def _diversity(job: Job, resolution: Resolution, vectors: np.ndarray) -> dict[str, Any]:
    """How diverse the texts are that were written, and those that are kept."""
    kept = [i for i, example in enumerate(resolution.examples) if example.kept]
    labels = [example.label for example in resolution.examples]
    return {
        "generated": as_rows(vectors, [one.target_label or one.label for one in resolution.examples], job.labels),
        "distilled": as_rows(vectors[kept], [labels[i] for i in kept], job.labels),
    }


def _metrics(report: RelabelReport) -> dict[str, float]:
    return {
        "texts_kept": report.kept,
        "share_contradicted": report.share_contradicted,
        "share_changed": report.share_changed,
        "share_applied": report.share_applied,
        "min_confidence": report.min_confidence,
        "description_weight": report.description_weight,
        **({"teacher_accuracy_on_seeds": report.seed_accuracy} if report.seed_accuracy is not None else {}),
    }


def _summary(report: RelabelReport) -> str:
    words = [f"{report.kept} of {report.texts} texts kept"]
    if report.seed_accuracy is not None:
        words.append(f"teacher right on {report.seed_accuracy:.0%} of the seeds, {report.guard}")
    words.append(f"{report.share_contradicted:.0%} contradicted, {report.share_changed:.0%} changed")
    if report.changes:
        source, target, count = max(report.changes, key=lambda change: change[2])
        words.append(f"mostly {source} -> {target} ({count})")
    return "; ".join(words)
