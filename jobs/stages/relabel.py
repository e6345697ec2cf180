"""Stage 2: the teacher relabels the generated texts, and the most confident are selected for the student.

    potstill relabel RUN

Several phrasings of the question are tried on some of the texts, and the most telling ones are used for all. The teacher
also labels the seeds (each left out of its own prompt) and the class descriptions: they show its leaning, and whether its
label changes are applied (``potstill/labels/resolution.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from actors.teachers.pool import TeacherPool
from jobs.run.job import Job
from jobs.runtime.progress import Meter
from jobs.stages.ask import Usage, ask
from jobs.stages.generate import embed_texts, usage_metrics
from potstill import draws
from potstill.labels.answered import Answered
from potstill.labels.evidence import rank_phrasings, read_votes, teacher_probs
from potstill.labels.questions import PHRASINGS, Embeddings, Phrasing
from potstill.labels.resolution import RelabelReport, Resolution, resolve
from potstill.measures.baselines import as_predictions
from potstill.rows import Example, Prediction, Request
from potstill.texts.diversity import as_rows

TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class Asked:
    """The teacher's answers about the texts and about what is known of the classes. ``tried``: the phrasings of the trial
    and what each tells, best first."""

    of_texts: Answered
    of_known: Answered
    phrasings: Sequence[Phrasing]
    tried: tuple[tuple[str, float], ...]
    usage: Usage


def relabel(job: Job, pool: TeacherPool) -> Resolution:
    """Run the stage; writes ``example/relabelled`` (every text, including dropped ones) and, if the teacher's own score is
    asked for, ``prediction/teacher``."""
    config, generated = job.config, job.run.read(Example, "generated")
    standing = [example for example in generated if example.kept]
    with job.terminal.stage("relabel") as line, job.tracker.stage("relabel") as record:
        line.note("embedding")
        vectors = embed_texts(job, [example.text for example in standing])
        meter = Meter(record.metrics)
        line.follow(meter.progress)
        asked = _ask_about(job, pool, [example.text for example in standing], vectors, meter)
        resolution = resolve(job.questions, standing, asked.of_texts, asked.of_known, vectors, config.augment.per_class)
        report = replace(resolution.report, phrasings=asked.tried)
        request_ids = asked.of_texts.plan["request_id"].to_pylist()
        resolution = Resolution(name_requests(resolution.examples, request_ids), report)
        resolved = {example.example_id: example for example in resolution.examples}
        job.run.write(Example, "relabelled", [resolved.get(example.example_id, example) for example in generated])
        job.run.write_json("relabel", {"usage": asked.usage, "report": report})
        job.run.write_json("diversity", _diversity(job, resolution, vectors.texts))
        _label_test_texts(job, pool, asked, meter)
        record.metrics({**usage_metrics(asked.usage), **_metrics(report)})
        line.summary = _summary(report)
    for warning in report.warnings:
        job.terminal.warn(warning)
    wanted = config.augment.per_class
    short = ", ".join(f"{label} {count}" for label, count in report.kept_per_class if count < wanted)
    if short:
        job.terminal.warn(f"fewer than augment.per_class = {wanted} texts kept: {short}; raise augment.over_generate")
    return resolution


def _ask_about(job: Job, pool: TeacherPool, texts: Sequence[str], vectors: Embeddings, meter: Meter) -> Asked:
    """Ask about all texts; nothing if relabelling is off."""
    requests: Iterable[Request] = ()
    phrasings: Sequence[Phrasing] = ()
    tried: tuple[tuple[str, float], ...] = ()
    usage = Usage()
    checks: list[Request] = []
    if job.config.relabel.enabled:
        phrasings, tried, usage = choose_phrasings(job, pool, texts, vectors, meter)
        requests = job.questions.about_texts(texts, vectors, phrasings)
        checks = job.questions.about_known(vectors, phrasings)
    expected = len(checks) + len(phrasings) * len(texts)
    answered, used = ask(job, pool, "relabel", chain(checks, requests), expected, meter)
    return Asked(answered.slice(len(checks)), answered.slice(0, len(checks)), phrasings, tried, usage + used)


def _label_test_texts(job: Job, pool: TeacherPool, asked: Asked, meter: Meter) -> None:
    """The teacher's own predictions on some test texts, labelled as unlabelled texts are. Only its score depends on them."""
    tested = draws.sample(job.data.test, job.teacher_tests, job.config.seed, "teacher")
    if not tested:
        return
    texts = [row.text for row in tested]
    requests = job.questions.about_texts(texts, embed_texts(job, texts), asked.phrasings)
    answered, _ = ask(job, pool, TEACHER, requests, len(asked.phrasings) * len(texts), meter)
    votes, known = (
        read_votes(job.task, part, count)
        for part, count in (
            (answered, len(texts)),
            (asked.of_known, asked.of_known.plan.num_rows // len(asked.phrasings)),
        )
    )
    probs, _ = teacher_probs(votes, np.full(len(texts), -1), known)
    even = np.where(np.isfinite(probs), probs, 1.0 / len(job.labels))
    job.run.write(Prediction, TEACHER, as_predictions(tested, even, job.labels))


def choose_phrasings(
    job: Job, pool: TeacherPool, texts: Sequence[str], vectors: Embeddings, meter: Meter
) -> tuple[Sequence[Phrasing], tuple[tuple[str, float], ...], Usage]:
    """The phrasings to ask about all texts, all that were tried with what each tells, and the usage of the trial."""
    questions = job.questions
    if not (count := questions.tried(len(texts))):
        return questions.usual, (), Usage()
    sample = draws.sample(range(len(texts)), count, job.config.seed, "phrasings")
    few = replace(vectors, texts=vectors.texts[sample])
    requests = questions.about_texts([texts[i] for i in sample], few, PHRASINGS)
    answered, usage = ask(job, pool, "phrasings", requests, len(PHRASINGS) * len(sample), meter)
    ranked = rank_phrasings(read_votes(job.task, answered, len(sample)))
    chosen = [PHRASINGS[i] for i, _ in ranked[: job.config.relabel.votes]]
    more = [phrasing for phrasing in questions.usual if phrasing not in PHRASINGS]  # with more votes than phrasings
    return (*chosen, *more)[: job.config.relabel.votes], tuple((str(PHRASINGS[i]), told) for i, told in ranked), usage


def name_requests(examples: Sequence[Example], request_ids: Sequence[str]) -> tuple[Example, ...]:
    """The examples with the request ids of their first votes; further votes follow that one in the plan."""
    if not request_ids:
        return tuple(examples)
    each, rest = divmod(len(request_ids), len(examples))
    assert not rest, f"{len(request_ids)} requests about {len(examples)} texts"
    return tuple(
        replace(example, relabel_request_id=name) for example, name in zip(examples, request_ids[::each], strict=True)
    )


def _diversity(job: Job, resolution: Resolution, vectors: np.ndarray) -> dict[str, Any]:
    """Diversity of the generated and of the kept texts."""
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
        **({"teacher_accuracy_on_seeds": report.seed_accuracy} if report.seed_accuracy is not None else {}),
    }


def _summary(report: RelabelReport) -> str:
    parts = [f"kept {report.kept} of {report.texts} texts"]
    if report.seed_accuracy is not None:
        parts.append(f"teacher accuracy on the seeds {report.seed_accuracy:.0%} ({report.guard})")
    if report.phrasings:
        parts.append(f"asked with {report.phrasings[0][0]}")
    parts.append(f"teacher disagrees on {report.share_contradicted:.0%}, labels changed {report.share_changed:.0%}")
    if report.changes:
        source, target, count = report.changes[0]
        parts.append(f"most often {source} -> {target} ({count})")
    return "; ".join(parts)
