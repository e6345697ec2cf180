"""What is known of a text's class: the teacher's votes, its place among the embeddings, and what it was written for.

The teacher's votes are calibrated over the whole stage and multiplied with a prior on the class the text was
written for, and with what a sentence encoder makes of the classes' descriptions, as far as these fit the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from potstill.config import RelabelConfig
from potstill.labels.answered import Answered
from potstill.labels.calibration import calibrate, normalise
from potstill.labels.questions import VOTE
from potstill.measures.kappa import kappa
from potstill.task import Task

_UNNAMED = 0.05  # mass of all classes that an answer of one bare class does not name
_EVEN = 0.5  # share of the even share from which on a class counts as even
_TINY = 1e-6  # floor of a probability: no source alone may rule a class out
_SHARPNESS = 20.0  # turns a cosine into a logit: 0.1 more cosine is 7 times the odds
_CHANNEL_TEMPERATURE = 4.0
_DESCRIPTION_SHARPNESS = 10.0
_DESCRIPTION_WEIGHT = 1.5  # the largest
_DESCRIPTIONS_FIT = (0.05, 0.25)  # kappa: up to the first descriptions count for nothing, from the second on in full
_TEACHER_KNOWS = (0.7, 0.9)  # kappa of teacher and target: from the second on nothing needs to be added
_ROUNDS = 20  # of calibration: enough to bring the means of the probabilities to the prior


@dataclass(frozen=True, slots=True)
class TeacherVotes:
    """Raw log-probabilities. ``votes``: of the class names, (n_texts, votes, n_classes). ``channel``: of the text
    under each class's writing prompt, (n_texts, n_classes), None where not asked for. NaN: not offered or not answered."""

    votes: np.ndarray
    channel: np.ndarray | None

    def silenced(self) -> TeacherVotes:
        """The same without a word from the teacher."""
        return TeacherVotes(np.full_like(self.votes, np.nan), None)


def read_answers(task: Task, answered: Answered, n_texts: int) -> TeacherVotes:
    """The answers to ``plan_relabel``'s requests about ``n_texts`` texts.

    Failed requests leave NaN.
    """
    names = {task.prompt_name(label): column for column, label in enumerate(task.labels)}
    labels = {label: column for column, label in enumerate(task.labels)}
    asked = answered.plan.num_rows
    per_text = asked // n_texts if n_texts else 0
    if per_text * n_texts != asked:
        raise ValueError(f"{asked} requests don't belong to {n_texts} texts")
    n_votes = answered.plan["strategy"].slice(0, per_text).to_pylist().count(VOTE)
    votes = np.full((n_texts, n_votes, len(labels)), np.nan)
    channel = np.full((n_texts, len(labels)), np.nan) if per_text > n_votes else None
    rows = answered.rows("strategy", "target_label", "choices", "choice_logprobs", "residual_mass")
    for i, (strategy, target, choices, logprobs, residual) in enumerate(rows):
        if logprobs is None or len(logprobs) != len(choices):
            continue
        for choice, logprob in zip(choices, _filled(logprobs, residual), strict=True):
            if strategy == VOTE:
                votes[i // per_text, i % per_text, names[choice]] = logprob
            elif channel is not None and target is not None:
                channel[i // per_text, labels[target]] = logprob
    return TeacherVotes(votes, channel)


def _filled(logprobs: Sequence[float | None], residual_mass: float | None) -> list[float]:
    """Log-probabilities of all choices. Those that a server did not name share the residual mass, none likelier than
    the unlikeliest one that it did name; beside one bare class without a probability they have a little."""
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
    """Distributions over the classes, each (n_texts, n_classes). ``teacher``: votes and channel, without the
    target; ``posterior``: all that is known together. ``descriptions``: what the classes' descriptions had to say.
    ``warnings`` of the calibrations."""

    teacher: np.ndarray
    posterior: np.ndarray
    descriptions: DescriptionSay
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DescriptionSay:
    """``weight``: exponent of the distribution by the descriptions; ``agreement``: kappa with the others, ``None``
    where the teacher was asked nothing."""

    weight: float = 0.0
    agreement: float | None = None


def weigh(
    answers: TeacherVotes,
    text_embeddings: np.ndarray,
    seed_embeddings: np.ndarray,
    seed_columns: np.ndarray,
    class_embeddings: np.ndarray,
    target_columns: np.ndarray,
    relabel: RelabelConfig,
) -> Evidence:
    """All that is known of each text's class. ``seed_columns``, ``target_columns``: class indices, -1 for a text that was
    written for none; embeddings: unit rows."""
    n_classes = len(class_embeddings)
    shares = expected_shares(target_columns, n_classes)
    teacher, warnings = teacher_probs(answers, shares)
    target = target_prior(target_columns, n_classes, relabel.target_prior)
    prototypes = prototype_probs(text_embeddings, seed_embeddings, seed_columns, class_embeddings)
    # Distance to the seeds stands in only where the teacher said nothing. With two seeds a class it prefers texts
    # that repeat a seed: among the 40 a class it ranked first on SMS spam, macro-F1 of a regression fell by 0.10.
    source = np.where(np.isfinite(teacher).all(1, keepdims=True), teacher, prototypes)
    described = description_probs(text_embeddings, class_embeddings, shares)
    say = weigh_descriptions(described, teacher, target_columns, relabel.descriptions)
    return Evidence(teacher, combine(source, target, described**say.weight), say, tuple(warnings))


def description_probs(
    text_embeddings: np.ndarray, class_embeddings: np.ndarray, prior: np.ndarray | None = None
) -> np.ndarray:
    """Probability of each class by closeness to its name and description, (n_texts, n_classes), calibrated to ``prior``.

    Classification by the classes' names alone is Chang et al. (AAAI 2008), "dataless" in their words.
    """
    return calibrate(text_embeddings @ class_embeddings.T * _DESCRIPTION_SHARPNESS, prior, rounds=_ROUNDS).probs


def weigh_descriptions(
    described: np.ndarray, teacher: np.ndarray, target_columns: np.ndarray, configured: float | Literal["auto"]
) -> DescriptionSay:
    """How far to listen to the descriptions.

    auto: as far as their choices agree, beyond chance, with the class a text was written for and the one the
    teacher took it for. On training-side rows that was 0.6 for AG News (topics), 0.4 for TREC-6, 0.2 for SMS spam,
    where listening helped a regression by 0.03 to 0.08 of macro-F1, and under 0.1 for SUBJ and
    twitter_complaints, where it harmed: "a sentence that states a fact" is close to no fact. A teacher that
    agrees with its own targets at 0.9 has no need of it.
    """
    asked = np.isfinite(teacher).all(1)
    if not asked.any():
        return DescriptionSay(0.0 if configured == "auto" else configured)
    one_hot = with_unknown(described.shape[1])
    choices, written_for = described[asked].argmax(1), one_hot[target_columns[asked]]
    agreement = kappa(choices, 0.5 * written_for + 0.5 * one_hot[teacher[asked].argmax(1)])
    if configured != "auto":
        return DescriptionSay(configured, agreement)
    doubt = 1.0 - _ramp(kappa(teacher[asked].argmax(1), written_for), *_TEACHER_KNOWS)
    return DescriptionSay(_DESCRIPTION_WEIGHT * _ramp(agreement, *_DESCRIPTIONS_FIT) * doubt, agreement)


def _ramp(value: float, low: float, high: float) -> float:
    """0 up to ``low``, 1 from ``high`` on, a line between."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


def expected_shares(target_columns: np.ndarray, n_classes: int) -> np.ndarray | None:
    """How the texts should be spread over the classes: as they were written. ``None`` (evenly) where no class has
    less than half its even share, since so much is chance."""
    target_columns = target_columns[target_columns >= 0]
    if not len(target_columns):
        return None
    shares = np.bincount(target_columns, minlength=n_classes) / len(target_columns)
    return None if shares.min() * n_classes >= _EVEN else shares


def teacher_probs(answers: TeacherVotes, prior: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
    """The teacher's view of each text, (n_texts, n_classes), and the calibrations' warnings. ``prior``: (n_classes,)
    expected shares of the classes, uniform by default.

    Each vote is calibrated alone, and their geometric mean taken; so is the channel score, with its
    log-likelihoods flattened, since a text's tokens are far from independent. NaN where nobody answered.
    """
    parts: list[np.ndarray] = []
    warnings: list[str] = []
    if answers.votes.shape[1]:
        total, counted = np.zeros(answers.votes[:, 0].shape), np.zeros(len(answers.votes))
        for vote in range(answers.votes.shape[1]):
            probs = _calibrated(answers.votes[:, vote], f"vote {vote + 1}", warnings, prior)
            answered = np.isfinite(probs).all(1)
            total[answered] += np.log(np.maximum(probs[answered], _TINY))
            counted += answered
        parts.append(np.where(counted[:, None] > 0, normalise(total / np.maximum(counted, 1)[:, None]), np.nan))
    if answers.channel is not None:
        parts.append(_calibrated(answers.channel / _CHANNEL_TEMPERATURE, "channel", warnings, prior))
    if not parts:
        return np.full((len(answers.votes), answers.votes.shape[2]), np.nan), warnings
    combined = combine(*parts)
    combined[~np.isfinite(np.stack(parts)).all(2).any(0)] = np.nan
    return combined, warnings


def _calibrated(logprobs: np.ndarray, name: str, warnings: list[str], prior: np.ndarray | None) -> np.ndarray:
    answered = np.isfinite(logprobs).any(1)
    probs = np.full(logprobs.shape, np.nan)
    if answered.any():
        calibration = calibrate(logprobs[answered], prior, rounds=_ROUNDS)
        probs[answered] = calibration.probs
        warnings += [f"{name}: {warning}" for warning in calibration.warnings]
    return probs


def prototype_probs(
    text_embeddings: np.ndarray, seed_embeddings: np.ndarray, seed_columns: np.ndarray, class_embeddings: np.ndarray
) -> np.ndarray:
    """Probability of each class by distance to its prototype, (n_texts, n_classes).

    A prototype is the mean of the class's own embedding and its seeds, a seed counting twice.
    """
    prototypes = np.array(class_embeddings, dtype=float)
    for column in range(len(class_embeddings)):
        own = seed_embeddings[seed_columns == column]
        prototypes[column] = (class_embeddings[column] + 2.0 * own.sum(0)) / (1 + 2.0 * len(own))
    prototypes /= np.maximum(np.linalg.norm(prototypes, axis=1, keepdims=True), 1e-9)
    return calibrate(text_embeddings @ prototypes.T * _SHARPNESS, rounds=_ROUNDS).probs


def target_prior(target_columns: np.ndarray, n_classes: int, share: float) -> np.ndarray:
    """(n_texts, n_classes): ``share`` for the class a text was written for, the rest spread evenly; even for column -1."""
    prior = np.full((len(target_columns), n_classes), (1.0 - share) / max(n_classes - 1, 1))
    prior[np.arange(len(target_columns)), target_columns] = share
    prior[target_columns < 0] = 1.0 / n_classes
    return prior


def with_unknown(n_classes: int) -> np.ndarray:
    """One row a class, all of its probability on that class, and a last row, of column -1, for a text written for none."""
    return np.vstack([np.eye(n_classes), np.full(n_classes, 1.0 / n_classes)])


def combine(*sources: np.ndarray) -> np.ndarray:
    """The normalised product of distributions (n_texts, n_classes); a row of NaN says nothing."""
    total = np.zeros_like(sources[0])
    for source in sources:
        total = total + np.where(np.isfinite(source), np.log(np.maximum(source, _TINY)), 0.0)
    return normalise(total)
