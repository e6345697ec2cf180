"""From the teacher's answers to labelled, selected examples, and an account of what relabelling did.

One pure function over a whole stage. Labels are distributions: evidence of teacher, embeddings and target
class multiplied; the surest texts of every class are kept. The guard against harm looks at the labelled seeds:
a teacher that they show to be worse than chance (binomial test at 5 %) is not used; one that they show to be neither worse
nor better changes a label only where all evidence together is at least 0.9 sure. The report says which it was.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest

from potstill.config import RelabelConfig
from potstill.labels import evidence
from potstill.labels.answered import Answered
from potstill.labels.questions import Embeddings, Questions, seed_columns
from potstill.rows import Example
from potstill.task import Task

LOW_EVIDENCE = "low evidence"
NOT_NEEDED = "not needed"
_UNPROVEN = 0.9  # probability that a change needs where the teacher's worth is not shown
_SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class RelabelReport:
    """What relabelling did. Shares are fractions of the texts that reached it.

    ``changes``: (from class, to class, texts) as applied. ``share_contradicted``: the teacher's own first
    choice was another class, also where it was not used; ``share_changed``: the label used is another one than was written for;
    ``guard``: what the seeds say of the teacher (``Guard``); ``min_confidence``: what a change of label needed.
    """

    texts: int
    kept: int
    seed_accuracy: float | None
    seed_chance: float
    guard: str
    dropped_because: str
    share_contradicted: float
    share_changed: float
    share_applied: float
    min_confidence: float
    changes: tuple[tuple[str, str, int], ...]
    kept_per_class: tuple[tuple[str, int], ...]
    description_weight: float
    description_agreement: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resolution:
    """The examples in the order given, with labels and reasons, and the report."""

    examples: tuple[Example, ...]
    report: RelabelReport


def resolve(
    questions: Questions,
    examples: Sequence[Example],
    answered: Answered,
    seed_answered: Answered,
    vectors: Embeddings,
    per_class: int,
) -> Resolution:
    """Label ``examples`` and keep the ``per_class`` surest of each class.

    ``examples``: those kept so far, one row of ``vectors.texts`` each; one without a target class takes the class with
    the most evidence. ``answered``, ``seed_answered``: the questions about texts and seeds with the answers, empty if
    relabelling is off. A failed request is a missing vote; nothing is raised for it.
    """
    task, relabel = questions.task, questions.relabel
    columns = {label: column for column, label in enumerate(task.labels)}
    targets = np.array([columns.get(example.target_label or example.label, -1) for example in examples], dtype=int)
    of_seeds = seed_columns(task, questions.seeds)
    warnings: list[str] = []

    votes = evidence.read_votes(task, answered, len(examples))
    seed_votes = evidence.read_votes(task, seed_answered, len(of_seeds))
    shares = evidence.expected_shares(targets, len(columns))
    check = check_on_seeds(votes, seed_votes, of_seeds, shares) if relabel.enabled else None
    guard = _guard(relabel, check)
    teacher_used = guard not in (Guard.OFF, Guard.NOT_USED)
    if relabel.enabled and len(examples):
        warnings += _remarks(guard, check)
    found = evidence.weigh(votes if teacher_used else np.full_like(votes, np.nan), vectors, of_seeds, targets, relabel)
    warnings += found.warnings
    threshold = _threshold(relabel, guard)
    applied = _apply_changes(found.posterior, targets, threshold if teacher_used else math.inf)
    labels, confidence = applied.labels, applied.confidence
    # Texts that were written for no class have no other label than what the evidence says, whosever it is.
    known = targets >= 0
    probs = np.where((known & (not teacher_used))[:, None], evidence.with_unknown(len(columns))[targets], applied.probs)
    if not teacher_used and not known.all():
        warnings.append("texts without a class are labelled by their closeness to the seeds alone, without the teacher")
    # Without a teacher there is no evidence to select by: closeness to the seeds picks what repeats them.
    chosen = select(labels, confidence if teacher_used else np.ones(len(labels)), per_class, len(columns))
    reason = LOW_EVIDENCE if teacher_used else NOT_NEEDED
    asked = np.isfinite(found.teacher).all(1)
    choice = np.nan_to_num(found.teacher).argmax(1)
    said = found.teacher if teacher_used else evidence.teacher_probs(votes, shares)[0]
    resolved = [
        replace(
            example,
            label=task.labels[labels[i]],
            label_probs=tuple(float(p) for p in probs[i]),
            confidence=float(confidence[i]),
            teacher_label=task.labels[choice[i]] if asked[i] else None,
            kept=bool(chosen[i]),
            dropped_because=None if chosen[i] else reason,
        )
        for i, example in enumerate(examples)
    ]
    report = RelabelReport(
        texts=len(examples),
        kept=int(chosen.sum()),
        seed_accuracy=None if check is None else check.accuracy,
        seed_chance=1.0 / len(columns) if check is None else check.chance,
        guard=guard.value,
        dropped_because=reason,
        share_contradicted=_share((said.argmax(1) != targets)[np.isfinite(said).all(1) & known]),
        share_changed=_share((labels != targets)[known]),
        share_applied=applied.share,
        min_confidence=threshold,
        changes=_changes(task, targets, labels),
        kept_per_class=tuple((label, int((chosen & (labels == column)).sum())) for label, column in columns.items()),
        description_weight=found.descriptions.weight,
        description_agreement=found.descriptions.agreement,
        warnings=tuple(warnings),
    )
    return Resolution(tuple(resolved), report)


class Guard(enum.Enum):
    """What the labelled seeds say of the teacher, and so what its word is worth."""

    OFF = "relabelling is off"
    NOT_USED = "worse than chance on the seeds: not used"
    UNPROVEN = "not proven on the seeds: only sure changes are made"
    PROVEN = "proven on the seeds: all changes are made"


@dataclass(frozen=True, slots=True)
class SeedCheck:
    """The teacher on the labelled seeds, each left out of its own prompt. ``chance``: accuracy of guessing among
    the classes that were offered; ``p_value``: how often guessing would be right on as many or more, ``p_worse``: on as
    many or fewer (one-sided binomial tests)."""

    accuracy: float
    chance: float
    p_value: float
    p_worse: float


def check_on_seeds(
    votes: np.ndarray, seed_votes: np.ndarray, seed_columns: np.ndarray, prior: np.ndarray | None = None
) -> SeedCheck | None:
    """The teacher's accuracy on the labelled seeds, calibrated as on the texts; None without answers.

    ``votes``, ``seed_votes``: (rows, votes, n_classes). The seeds are too few to calibrate on, so their votes are
    calibrated together with those on the stage's texts.
    """
    if not len(seed_columns) or not np.isfinite(seed_votes).any():
        return None
    probs = evidence.teacher_probs(np.concatenate([votes, seed_votes]), prior)[0][len(votes) :]
    answered = np.isfinite(probs).all(1)
    if not answered.any():
        return None
    right, asked = int((answered & (probs.argmax(1) == seed_columns)).sum()), int(answered.sum())
    # With more classes than are offered for a text, guessing is right more often than one time in all classes.
    offered = np.isfinite(seed_votes).any(1).sum(1)[answered]
    chance = float((1.0 / offered).mean())
    better, worse = (float(binomtest(right, asked, chance, side).pvalue) for side in ("greater", "less"))
    return SeedCheck(right / asked, chance, better, worse)


def _guard(relabel: RelabelConfig, check: SeedCheck | None) -> Guard:
    if not relabel.enabled:
        return Guard.OFF
    if check is None:
        return Guard.UNPROVEN
    if check.p_worse < _SIGNIFICANT:
        return Guard.NOT_USED
    return Guard.PROVEN if check.p_value < _SIGNIFICANT else Guard.UNPROVEN


def _remarks(guard: Guard, check: SeedCheck | None) -> list[str]:
    """What a user should hear of a teacher that was asked."""
    if check is None:
        return ["the teacher gave no answer about the labelled seeds: only changes that are sure are made"]
    if guard is Guard.NOT_USED:
        share = f"{check.accuracy:.0%} of the labelled seeds, below chance ({check.chance:.0%}) by more than luck"
        return [f"the teacher is right on {share}; its labels are not used"]
    return []


@dataclass(frozen=True, slots=True)
class _Applied:
    """Labels after the guard. ``share``: of the changes that the evidence asked for, those that were made."""

    labels: np.ndarray
    probs: np.ndarray
    confidence: np.ndarray
    share: float


def _threshold(relabel: RelabelConfig, guard: Guard) -> float:
    """Confidence that a change of label needs. auto: none where the seeds show that the teacher knows the
    classes, ``_UNPROVEN`` where it may as well have guessed."""
    if relabel.min_confidence != "auto":
        return relabel.min_confidence
    return 0.0 if guard is Guard.PROVEN else _UNPROVEN


def _apply_changes(posterior: np.ndarray, targets: np.ndarray, threshold: float) -> _Applied:
    """Change labels where the evidence is sure enough; elsewhere a text keeps the class it was written for.

    A text whose change was not made has little evidence for its label, so selection takes it last.
    """
    rows = np.arange(len(targets))
    labels = posterior.argmax(1) if len(targets) else targets
    wanted = (labels != targets) & (targets >= 0)
    refused = wanted & (posterior.max(1, initial=0.0) < threshold)
    labels = np.where(refused, targets, labels)
    # Half a vote for the target: then it is the likeliest class, and the doubt stays visible.
    one_hot = evidence.with_unknown(posterior.shape[1])[targets]
    probs = np.where(refused[:, None], 0.5 * one_hot + 0.5 * posterior, posterior)
    share = 1.0 - refused.sum() / wanted.sum() if wanted.any() else 1.0
    return _Applied(labels, probs, posterior[rows, labels], float(share))


def _changes(task: Task, targets: np.ndarray, labels: np.ndarray) -> tuple[tuple[str, str, int], ...]:
    counts = Counter(
        (task.labels[a], task.labels[b]) for a, b in zip(targets, labels, strict=True) if a != b and a >= 0
    )
    return tuple((source, target, count) for (source, target), count in counts.most_common())


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def select(columns: np.ndarray, confidence: np.ndarray, per_class: int, n_classes: int) -> np.ndarray:
    """A mask (n_texts,) of at most ``per_class`` texts for every class; of equally sure ones the first.

    ``columns``: class of each text; ``confidence``: its probability.
    """
    chosen = np.zeros(len(columns), dtype=bool)
    for column in range(n_classes):
        own = np.flatnonzero(columns == column)
        chosen[own[np.argsort(-confidence[own], kind="stable")[:per_class]]] = True
    return chosen
