"""Evidence on a text's class: the teacher's votes, its embedding, and the class it was written for.

Votes are calibrated over all texts of the stage. They are multiplied by a prior on the target class and by class
probabilities from a sentence encoder and the class descriptions; the latter's weight grows with their agreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from potstill.config import RelabelConfig
from potstill.labels.answered import Answered
from potstill.labels.calibration import calibrate, normalise
from potstill.labels.prototypes import class_prototypes
from potstill.labels.questions import Embeddings
from potstill.measures.kappa import kappa
from potstill.task import Task

_UNNAMED = 0.05  # probability of all other classes if the answer only names one class
_EVEN = 0.5  # shares count as even if every class has this fraction of its even share
_TINY = 1e-6  # probability floor: no single source can rule out a class
_SHARPNESS = 20.0  # logits per unit of cosine: 0.1 more cosine multiplies the odds by 7
_DESCRIPTION_SHARPNESS = 10.0
_DESCRIPTION_WEIGHT = 1.5  # maximum
_DESCRIPTIONS_FIT = (0.05, 0.25)  # kappa at which the descriptions' weight starts to grow, and reaches its maximum
_TEACHER_KNOWS = (0.7, 0.9)  # kappa of teacher and target at which that weight starts to shrink, and reaches 0
_ROUNDS = 20  # of calibration: enough for the mean probabilities to reach the prior


def read_votes(task: Task, answered: Answered, n_texts: int) -> np.ndarray:
    """Class log-probabilities, (n_texts, votes, n_classes), from the answers to ``Questions`` about ``n_texts`` texts.

    NaN if a class was not offered or the request failed. Raises ``ValueError`` if the requests don't match the texts.
    """
    columns = {task.prompt_name(label): column for column, label in enumerate(task.labels)}
    asked = answered.plan.num_rows
    n_votes = asked // n_texts if n_texts else 0
    if n_votes * n_texts != asked:
        raise ValueError(f"{asked} requests don't match {n_texts} texts")
    votes = np.full((n_texts, n_votes, len(columns)), np.nan)
    for i, (choices, logprobs, residual) in enumerate(answered.rows("choices", "choice_logprobs", "residual_mass")):
        if logprobs is not None and len(logprobs) == len(choices):
            for choice, logprob in zip(choices, _filled(logprobs, residual), strict=True):
                votes[i // n_votes, i % n_votes, columns[choice]] = logprob
    return votes


def _filled(logprobs: Sequence[float | None], residual_mass: float | None) -> list[float]:
    """Log-probabilities of all choices.

    Choices missing from the response share the residual mass, each at most as likely as the least likely named one.
    If the answer only names a class, without a probability, the others share ``_UNNAMED``.
    """
    named = [logprob for logprob in logprobs if logprob is not None]
    unnamed = len(logprobs) - len(named)
    if not unnamed or not named:
        return [np.nan if logprob is None else logprob for logprob in logprobs]
    if named == [0.0] and not residual_mass:
        share = np.log(_UNNAMED / unnamed)
    else:
        mass = max(0.0, 1.0 - float(np.exp(named).sum())) if residual_mass is None else residual_mass
        share = min(np.log(max(mass / unnamed, _TINY)), *named)
    return [share if logprob is None else logprob for logprob in logprobs]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Class distributions, each (n_texts, n_classes). ``teacher``: the votes alone; ``posterior``: all evidence
    combined. ``warnings``: from calibration."""

    teacher: np.ndarray
    posterior: np.ndarray
    descriptions: DescriptionWeight
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DescriptionWeight:
    """``weight``: exponent of the descriptions' distribution; ``agreement``: their kappa with teacher and target, None
    if the teacher was not asked."""

    weight: float = 0.0
    agreement: float | None = None


def weigh(
    votes: np.ndarray,
    vectors: Embeddings,
    seed_columns: np.ndarray,
    target_columns: np.ndarray,
    relabel: RelabelConfig,
) -> Evidence:
    """All evidence on each text's class. ``votes``: (n_texts, votes, n_classes); ``seed_columns``, ``target_columns``:
    class indices, -1 for a text without a target class."""
    n_classes = len(vectors.classes)
    shares = expected_shares(target_columns, n_classes)
    teacher, warnings = teacher_probs(votes, shares)
    target = target_prior(target_columns, n_classes, relabel.target_prior)
    prototypes = class_prototypes(vectors.seeds, seed_columns, vectors.classes)
    nearest = calibrate(vectors.texts @ prototypes.T * _SHARPNESS, rounds=_ROUNDS).probs
    # Distance to the seeds only replaces missing answers. With two seeds per class it prefers texts that repeat a seed:
    # selecting by it (40 texts per class, SMS spam) lowered a regression's macro-F1 by 0.10.
    source = np.where(np.isfinite(teacher).all(1, keepdims=True), teacher, nearest)
    described = description_probs(vectors.texts, vectors.classes, shares)
    descriptions = weigh_descriptions(described, teacher, target_columns, relabel.descriptions)
    posterior = combine(source, target, described**descriptions.weight)
    return Evidence(teacher, posterior, descriptions, tuple(warnings))


def description_probs(
    text_embeddings: np.ndarray, class_embeddings: np.ndarray, prior: np.ndarray | None = None
) -> np.ndarray:
    """Class probabilities from similarity to name and description, (n_texts, n_classes), calibrated to ``prior``.

    This is dataless classification (Chang et al., AAAI 2008).
    """
    return calibrate(text_embeddings @ class_embeddings.T * _DESCRIPTION_SHARPNESS, prior, rounds=_ROUNDS).probs


def weigh_descriptions(
    described: np.ndarray, teacher: np.ndarray, target_columns: np.ndarray, configured: float | Literal["auto"]
) -> DescriptionWeight:
    """The weight of the descriptions.

    auto: grows with their kappa with the target class and the teacher's choice. On training rows kappa was 0.6 on AG
    News (topics), 0.4 on TREC-6 and 0.2 on SMS spam, where descriptions raised a regression's macro-F1 by 0.03 to 0.08.
    It was below 0.1 on SUBJ and twitter_complaints, where they did harm: "a sentence that states a fact" resembles no
    fact. The weight is 0 once the teacher's kappa with the targets reaches 0.9.
    """
    asked = np.isfinite(teacher).all(1)
    if not asked.any():
        return DescriptionWeight(0.0 if configured == "auto" else configured)
    one_hot = with_unknown(described.shape[1])
    choices, written_for = described[asked].argmax(1), one_hot[target_columns[asked]]
    agreement = kappa(choices, 0.5 * written_for + 0.5 * one_hot[teacher[asked].argmax(1)])
    if configured != "auto":
        return DescriptionWeight(configured, agreement)
    doubt = 1.0 - _ramp(kappa(teacher[asked].argmax(1), written_for), *_TEACHER_KNOWS)
    return DescriptionWeight(_DESCRIPTION_WEIGHT * _ramp(agreement, *_DESCRIPTIONS_FIT) * doubt, agreement)


def _ramp(value: float, low: float, high: float) -> float:
    """0 up to ``low``, 1 from ``high``, linear between."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


def expected_shares(target_columns: np.ndarray, n_classes: int) -> np.ndarray | None:
    """The classes' shares among the targets, (n_classes,). None (even) if every class has at least half its even
    share, since smaller differences are chance."""
    target_columns = target_columns[target_columns >= 0]
    if not len(target_columns):
        return None
    shares = np.bincount(target_columns, minlength=n_classes) / len(target_columns)
    return None if shares.min() * n_classes >= _EVEN else shares


def teacher_probs(votes: np.ndarray, prior: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
    """The teacher's class probabilities, (n_texts, n_classes), and warnings from calibration.

    Each vote of ``votes`` (n_texts, votes, n_classes) is calibrated separately; the result is their geometric mean, NaN
    if every vote failed. ``prior``: expected shares, (n_classes,), uniform by default.
    """
    warnings: list[str] = []
    total, counted = np.zeros((len(votes), votes.shape[2])), np.zeros(len(votes))
    for vote in range(votes.shape[1]):
        probs = _calibrated(votes[:, vote], f"vote {vote + 1}", warnings, prior)
        answered = np.isfinite(probs).all(1)
        total[answered] += np.log(np.maximum(probs[answered], _TINY))
        counted += answered
    mean = combine(normalise(total / np.maximum(counted, 1)[:, None]))
    return np.where(counted[:, None] > 0, mean, np.nan), warnings


def _calibrated(logprobs: np.ndarray, name: str, warnings: list[str], prior: np.ndarray | None) -> np.ndarray:
    answered = np.isfinite(logprobs).any(1)
    probs = np.full(logprobs.shape, np.nan)
    if answered.any():
        calibration = calibrate(logprobs[answered], prior, rounds=_ROUNDS)
        probs[answered] = calibration.probs
        warnings += [f"{name}: {warning}" for warning in calibration.warnings]
    return probs


def target_prior(target_columns: np.ndarray, n_classes: int, share: float) -> np.ndarray:
    """(n_texts, n_classes): ``share`` for the target class, the rest spread evenly; uniform for column -1."""
    prior = np.full((len(target_columns), n_classes), (1.0 - share) / max(n_classes - 1, 1))
    prior[np.arange(len(target_columns)), target_columns] = share
    prior[target_columns < 0] = 1.0 / n_classes
    return prior


def with_unknown(n_classes: int) -> np.ndarray:
    """One-hot rows for the classes and a uniform last row for column -1, a text without a target class."""
    return np.vstack([np.eye(n_classes), np.full(n_classes, 1.0 / n_classes)])


def combine(*sources: np.ndarray) -> np.ndarray:
    """The normalised product of distributions (n_texts, n_classes); NaN rows are ignored."""
    total = np.zeros_like(sources[0])
    for source in sources:
        total = total + np.where(np.isfinite(source), np.log(np.maximum(source, _TINY)), 0.0)
    return normalise(total)
