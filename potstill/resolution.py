"""From the teacher's answers to labelled, selected examples, and an account of what relabelling did.

One pure function over a whole stage. Labels are distributions: evidence of teacher, embeddings and target
class multiplied; the surest texts of every class are kept. The guard against harm looks at the labelled seeds:
a teacher that is right on fewer than chance is not used; one whose worth they don't show (binomial test at 5 %)
changes a label only where all evidence together is at least 0.9 sure. The report says which it was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest

from potstill import evidence
from potstill.config import AugmentConfig, RelabelConfig
from potstill.rows import Example, Request, Response
from potstill.selection import select
from potstill.task import LabelledText, Task

LOW_EVIDENCE = "low evidence"
_UNPROVEN = 0.9  # probability that a change needs where the teacher's worth is not shown
_SIGNIFICANT = 0.05


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
    check = check_on_seeds(answers, seed_answers, seed_columns)
    teacher_used = relabel.enabled and (check is None or check.accuracy >= 1.0 / len(columns))
    if relabel.enabled and not teacher_used and check is not None:
        warnings.append(
            f"the teacher is right on {check.accuracy:.0%} of the labelled seeds, below chance; its labels are not used"
        )
    found = evidence.weigh(
        answers if teacher_used else answers.silenced(),
        text_embeddings,
        seed_embeddings,
        seed_columns,
        class_embeddings,
        targets,
        relabel.target_prior,
    )
    warnings += found.warnings
    threshold = _threshold(relabel, check)
    applied = _apply_changes(found.posterior, targets, threshold if relabel.enabled else math.inf)
    labels, confidence = applied.labels, applied.confidence
    probs = applied.probs if relabel.enabled else np.eye(len(columns))[targets]
    chosen = select(labels, confidence, text_embeddings, augment.per_class, len(columns))
    asked = np.isfinite(found.teacher).all(1)
    choice = np.nan_to_num(found.teacher).argmax(1)
    resolved = [
        replace(
            example,
            label=task.labels[labels[i]],
            label_probs=tuple(float(p) for p in probs[i]),
            confidence=float(confidence[i]),
            teacher_label=task.labels[choice[i]] if asked[i] else None,
            kept=bool(chosen[i]),
            dropped_because=None if chosen[i] else LOW_EVIDENCE,
        )
        for i, example in enumerate(examples)
    ]
    report = RelabelReport(
        texts=len(examples),
        kept=int(chosen.sum()),
        seed_accuracy=None if check is None else check.accuracy,
        seed_chance=1.0 / len(columns),
        teacher_used=teacher_used,
        share_contradicted=_share((choice != targets)[asked]),
        share_changed=_share(labels != targets),
        share_applied=applied.share,
        min_confidence=threshold,
        changes=_changes(task, targets, labels),
        kept_per_class=tuple((label, int((chosen & (labels == column)).sum())) for label, column in columns.items()),
        prototype_agreement=_share((found.prototypes.argmax(1) == choice)[asked]),
        warnings=tuple(warnings),
    )
    return Resolution(tuple(resolved), report)


@dataclass(frozen=True, slots=True)
class SeedCheck:
    """The teacher on the labelled seeds, each left out of its own prompt. ``p_value``: how often guessing
    would be right on as many (one-sided binomial test)."""

    accuracy: float
    p_value: float


def check_on_seeds(
    answers: evidence.Answers, seed_answers: evidence.Answers, seed_columns: np.ndarray
) -> SeedCheck | None:
    """How good the teacher is on the labelled seeds, calibrated as on the texts; None without answers.

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
    if not answered.any():
        return None
    right, asked = int((answered & (probs.argmax(1) == seed_columns)).sum()), int(answered.sum())
    return SeedCheck(right / asked, float(binomtest(right, asked, 1.0 / probs.shape[1], "greater").pvalue))


@dataclass(frozen=True, slots=True)
class _Applied:
    """Labels after the guard. ``share``: of the changes that the evidence asked for, those that were made."""

    labels: np.ndarray
    probs: np.ndarray
    confidence: np.ndarray
    share: float


def _threshold(relabel: RelabelConfig, check: SeedCheck | None) -> float:
    """Confidence that a change of label needs. auto: none where the seeds show that the teacher knows the
    classes, ``_UNPROVEN`` where it may as well have guessed."""
    if relabel.min_confidence != "auto":
        return relabel.min_confidence
    return 0.0 if check is None or check.p_value < _SIGNIFICANT else _UNPROVEN


def _apply_changes(posterior: np.ndarray, targets: np.ndarray, threshold: float) -> _Applied:
    """Change labels where the evidence is sure enough; elsewhere a text keeps the class it was written for.

    A text whose change was not made has little evidence for its label, so selection takes it last.
    """
    rows = np.arange(len(targets))
    labels = posterior.argmax(1) if len(targets) else targets
    wanted = labels != targets
    refused = wanted & (posterior.max(1, initial=0.0) < threshold)
    labels = np.where(refused, targets, labels)
    # Half a vote for the target: then it is the likeliest class, and the doubt stays visible.
    one_hot = np.eye(posterior.shape[1])[targets]
    probs = np.where(refused[:, None], 0.5 * one_hot + 0.5 * posterior, posterior)
    share = 1.0 - refused.sum() / wanted.sum() if wanted.any() else 1.0
    return _Applied(labels, probs, posterior[rows, labels], float(share))


def _changes(task: Task, targets: np.ndarray, labels: np.ndarray) -> tuple[tuple[str, str, int], ...]:
    counts = Counter((task.labels[a], task.labels[b]) for a, b in zip(targets, labels, strict=True) if a != b)
    return tuple((source, target, count) for (source, target), count in counts.most_common())


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0
