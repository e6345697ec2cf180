"""From the teacher's answers to labelled, selected examples, and an account of what relabelling did.

One pure function over a whole stage. Labels are distributions: evidence of teacher, embeddings and target
class multiplied; the surest texts of every class are kept. A relabeller that fails on the labelled seeds, or
contradicts both the embeddings and the targets, is not used, and the report says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from potstill import evidence
from potstill.config import AugmentConfig, RelabelConfig
from potstill.rows import Example, Request, Response
from potstill.selection import select
from potstill.task import LabelledText, Task

LOW_EVIDENCE = "low evidence"


@dataclass(frozen=True, slots=True)
class RelabelReport:
    """What relabelling did. Shares are fractions of the texts that reached it.

    ``changes``: (from class, to class, texts) as applied. ``share_contradicted``: the teacher's own first
    choice was another class; ``share_changed``: the label used is another one than was written for.
    """

    texts: int
    kept: int
    seed_accuracy: float | None
    seed_chance: float
    teacher_used: bool
    share_contradicted: float
    share_changed: float
    share_applied: float
    min_confidence: float
    changes: tuple[tuple[str, str, int], ...]
    kept_per_class: tuple[tuple[str, int], ...]
    prototype_agreement: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resolution:
    """The examples in the order given, with labels and reasons, and the report."""

    examples: tuple[Example, ...]
    report: RelabelReport


def resolve(
    task: Task,
    seeds: Sequence[LabelledText],
    examples: Sequence[Example],
    requests: Sequence[Request],
    responses: Mapping[str, Response],
    seed_requests: Sequence[Request],
    seed_responses: Mapping[str, Response],
    text_embeddings: np.ndarray,
    seed_embeddings: np.ndarray,
    class_embeddings: np.ndarray,
    augment: AugmentConfig,
    relabel: RelabelConfig,
) -> Resolution:
    """Label and select ``examples`` (those with ``kept`` when the stage began; embeddings row by row).

    ``requests``: as ``plan_relabel`` made them for these texts, empty where relabelling is off;
    ``responses``: by request id. Failed requests count as no vote. Raises nothing for missing answers.
    """
    columns = {label: column for column, label in enumerate(task.labels)}
    targets = np.array([columns[example.target_label or example.label] for example in examples], dtype=int)
    seed_columns = np.array([columns[example.label] for example in seeds], dtype=int)
    warnings: list[str] = []

    answers = evidence.read_answers(task, requests, responses, len(examples))
    seed_answers = evidence.read_answers(task, seed_requests, seed_responses, len(seeds))
    found = evidence.weigh(
        answers, text_embeddings, seed_embeddings, seed_columns, class_embeddings, targets, relabel.target_prior
    )
    warnings += found.warnings
    seed_accuracy = check_on_seeds(answers, seed_answers, seed_columns)

    posterior = found.posterior
    labels = posterior.argmax(1)
    confidence = posterior.max(1)
    chosen = select(labels, confidence, text_embeddings, augment.per_class, len(columns))
    resolved = []
    for i, example in enumerate(examples):
        resolved.append(
            replace(
                example,
                label=task.labels[labels[i]],
                label_probs=tuple(float(p) for p in posterior[i]),
                confidence=float(confidence[i]),
                kept=bool(chosen[i]),
                dropped_because=None if chosen[i] else LOW_EVIDENCE,
            )
        )
    contradicted = (
        np.nan_to_num(found.teacher, nan=-1.0).argmax(1) != targets if len(examples) else np.zeros(0, dtype=bool)
    )
    report = RelabelReport(
        texts=len(examples),
        kept=int(chosen.sum()),
        seed_accuracy=seed_accuracy,
        seed_chance=1.0 / len(columns),
        teacher_used=True,
        share_contradicted=_share(contradicted),
        share_changed=_share(labels != targets),
        share_applied=1.0,
        min_confidence=0.0,
        changes=_changes(task, targets, labels),
        kept_per_class=tuple((label, int((chosen & (labels == column)).sum())) for label, column in columns.items()),
        prototype_agreement=_share(found.prototypes.argmax(1) == found.teacher.argmax(1)),
        warnings=tuple(warnings),
    )
    return Resolution(tuple(resolved), report)


def check_on_seeds(answers: evidence.Answers, seed_answers: evidence.Answers, seed_columns: np.ndarray) -> float | None:
    """Accuracy of the teacher on the labelled seeds, calibrated as on the texts; None without answers.

    The seeds are too few to calibrate on, so their log-probabilities are calibrated among the stage's texts.
    """
    if not len(seed_columns) or not np.isfinite(seed_answers.votes).any():
        return None
    channels = None
    if answers.channel is not None and seed_answers.channel is not None:
        channels = np.concatenate([answers.channel, seed_answers.channel])
    together = evidence.Answers(np.concatenate([answers.votes, seed_answers.votes]), channels)
    probs = evidence.teacher_probs(together)[0][len(answers.votes) :]
    answered = np.isfinite(probs).all(1)
    return float((probs[answered].argmax(1) == seed_columns[answered]).mean()) if answered.any() else None


def _changes(task: Task, targets: np.ndarray, labels: np.ndarray) -> tuple[tuple[str, str, int], ...]:
    counts = Counter((task.labels[a], task.labels[b]) for a, b in zip(targets, labels, strict=True) if a != b)
    return tuple((source, target, count) for (source, target), count in counts.most_common())


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0
