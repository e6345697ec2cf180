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

from potstill.config import AugmentConfig, RelabelConfig
from potstill.labels import evidence
from potstill.labels.answered import Answered
from potstill.rows import Example
from potstill.task import LabelledText, Task

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
    task: Task,
    seeds: Sequence[LabelledText],
    examples: Sequence[Example],
    answered: Answered,
    seed_answered: Answered,
    text_embeddings: np.ndarray,
    seed_embeddings: np.ndarray,
    class_embeddings: np.ndarray,
    augment: AugmentConfig,
    relabel: RelabelConfig,
) -> Resolution:
    """Label and select ``examples`` (those with ``kept`` when the stage began; embeddings row by row). One without a
    target takes the class that the evidence says.

    ``answered``: what ``plan_relabel`` asks about these texts with the answers, empty where relabelling is off;
    ``seed_answered``: the same of ``plan_seed_check``. Failed requests count as no vote. Raises
    nothing for missing answers.
    """
    columns = {label: column for column, label in enumerate(task.labels)}
    targets = np.array([columns.get(example.target_label or example.label, -1) for example in examples], dtype=int)
    seed_columns = np.array([columns[example.label] for example in seeds], dtype=int)
    warnings: list[str] = []

    answers = evidence.read_answers(task, answered, len(examples))
    seed_answers = evidence.read_answers(task, seed_answered, len(seeds))
    shares = evidence.expected_shares(targets, len(columns))
    check = check_on_seeds(answers, seed_answers, seed_columns, shares) if relabel.enabled else None
    guard = _guard(relabel, check)
    teacher_used = guard not in (Guard.OFF, Guard.NOT_USED)
    if relabel.enabled and len(examples):
        warnings += _remarks(guard, check)
    found = evidence.weigh(
        answers if teacher_used else answers.silenced(),
        text_embeddings,
        seed_embeddings,
        seed_columns,
        class_embeddings,
        targets,
        relabel,
    )
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
    chosen = select(labels, confidence if teacher_used else np.ones(len(labels)), augment.per_class, len(columns))
    reason = LOW_EVIDENCE if teacher_used else NOT_NEEDED
    asked = np.isfinite(found.teacher).all(1)
    choice = np.nan_to_num(found.teacher).argmax(1)
    said = found.teacher if teacher_used else evidence.teacher_probs(answers, shares)[0]
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
    answers: evidence.TeacherVotes,
    seed_answers: evidence.TeacherVotes,
    seed_columns: np.ndarray,
    prior: np.ndarray | None = None,
) -> SeedCheck | None:
    """How good the teacher is on the labelled seeds, calibrated as on the texts; None without answers.

    The seeds are too few to calibrate on, so their log-probabilities are calibrated among the stage's texts.
    """
    if not len(seed_columns) or not np.isfinite(seed_answers.votes).any():
        return None
    channels = None
    if answers.channel is not None and seed_answers.channel is not None:
        channels = np.concatenate([answers.channel, seed_answers.channel])
    together = evidence.TeacherVotes(np.concatenate([answers.votes, seed_answers.votes]), channels)
    probs = evidence.teacher_probs(together, prior)[0][len(answers.votes) :]
    answered = np.isfinite(probs).all(1)
    if not answered.any():
        return None
    right, asked = int((answered & (probs.argmax(1) == seed_columns)).sum()), int(answered.sum())
    # With more classes than are offered for a text, guessing is right more often than one time in all classes.
    offered = np.isfinite(seed_answers.votes).any(1).sum(1)[answered]
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
