"""Diagnose a task and a teacher before money is spent, from the teacher's votes on some texts.

    VoteQuestions(task, seeds, teacher, seed).about_texts(texts, offered)   # VOTES requests per text
    diagnose(calibrated(votes))   # agreement, entropy, alpha, consistency under class permutation

A text gets two phrasings, each with classes and examples in both orders. Li et al. (EMNLP 2023) found that synthetic data
fails where people disagree; here the teacher's own votes stand for theirs (``docs/measures.md`` reports how well). Sampling
needs no requests: the teacher returns the probability of every class, and two samples agree with probability sum p^2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potstill import draws
from potstill.labels.calibration import calibrate
from potstill.labels.questions import ANSWER_TOKENS, VOTE, without
from potstill.measures import subjectivity
from potstill.prompts.contents import ChoosePrompt, ClassCard, card
from potstill.prompts.render import make_request
from potstill.rows import Request, Sampling
from potstill.task import LabelledText, Task
from potstill.teacher import Teacher

Floats = NDArray[np.float64]

TEXTS = 300  # asked about at most, by default
FEWEST_TEXTS, MOST_TEXTS = 10, 10_000  # bounds of that number
PHRASINGS, ORDERS = 2, 2
VOTES = PHRASINGS * ORDERS
_SHOTS = 4  # examples per class in a question
_CALIBRATION_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Means over the texts with all votes, fractions of 1.

    ``agreement``: share of the votes for the most common class; ``sampled_agreement``: probability that two samples of
    one vote agree; ``entropy`` of the mean distribution, 1 if uniform; ``alpha``: Krippendorff's alpha among the votes
    (``None`` if all votes are for one class); ``same_when_reordered``: same first choice with classes and examples
    reversed; ``same_when_rephrased``: same first choice under the other phrasing; ``class_coverage``: exponential of the
    entropy of the class shares, divided by the number of classes; 1 if the texts spread evenly over the classes.
    """

    texts: int
    agreement: float
    sampled_agreement: float
    entropy: float
    alpha: float | None
    same_when_reordered: float
    same_when_rephrased: float
    class_coverage: float


@dataclass(frozen=True, slots=True)
class VoteQuestions:
    """Makes ``VOTES`` requests for a text's class. ``seed``: data seed of the choice and order of examples."""

    task: Task
    seeds: Sequence[LabelledText]
    teacher: Teacher
    seed: int

    def about_texts(self, texts: Sequence[str], offered: Sequence[Sequence[str]]) -> Iterator[Request]:
        """Requests text by text. ``offered``: the classes to choose from, for each text."""
        return (
            self._vote(vote, text, labels, self.seeds)
            for text, labels in zip(texts, offered, strict=True)
            for vote in range(VOTES)
        )

    def about_seeds(self, offered: Sequence[Sequence[str]]) -> list[Request]:
        """Requests about each seed, with that seed and one of every other class left out of the prompt."""
        return [
            self._vote(vote, asked.text, offered[i], [self.seeds[j] for j in without(self.seeds, i)])
            for i, asked in enumerate(self.seeds)
            for vote in range(VOTES)
        ]

    def _vote(self, vote: int, text: str, labels: Sequence[str], seeds: Sequence[LabelledText]) -> Request:
        task = self.task
        rephrased, backwards = divmod(vote, ORDERS)
        shown = self._examples(seeds, labels)
        cards = [card(task, label) for label in labels]
        if rephrased:
            # List prompts show neither task nor question, so the class descriptions are rephrased too.
            cards = [ClassCard(one.name, f"fits every entry of which one can say: {one.description}") for one in cards]
        if backwards:
            shown, cards = shown[::-1], cards[::-1]
        names = ", ".join(one.name for one in cards)
        prompt = ChoosePrompt(
            task=f"Every text is sorted under one heading: {names}." if rephrased else task.description,
            text_kind="entry" if rephrased else task.text_kind,
            source=task.source,
            cards=tuple(cards),
            shown=tuple((one.text, task.prompt_name(one.label)) for one in shown),
            text=text,
        )
        return make_request(
            prompt,
            self.teacher,
            Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS),
            stage="assess",
            task=task.name,
            strategy=VOTE,
            choices=tuple(task.prompt_name(label) for label in labels),
            exemplar_ids=tuple(one.example_id for one in shown),
        )

    def _examples(self, seeds: Sequence[LabelledText], labels: Sequence[str]) -> list[LabelledText]:
        """Up to four seeds of each class offered, in a random order."""
        ordered = sorted(seeds, key=lambda one: one.example_id)
        taken = [
            one
            for label in labels
            for one in draws.sample([o for o in ordered if o.label == label], _SHOTS, self.seed, "assess")
        ]
        return draws.shuffle(taken, self.seed, "assess order")


def calibrated(votes: Floats) -> Floats:
    """Distributions (texts, votes, classes) from raw log-probabilities, each vote calibrated separately over the texts,
    as if the classes were equally common. NaN where the teacher did not answer."""
    probs = np.full(votes.shape, np.nan)
    for vote in range(votes.shape[1]):
        answered = np.isfinite(votes[:, vote]).any(1)
        if answered.any():
            probs[answered, vote] = calibrate(votes[answered, vote], rounds=_CALIBRATION_ROUNDS).probs
    return probs


def diagnose(probs: Floats) -> Diagnosis | None:
    """``probs``: (texts, VOTES, classes) from ``calibrated``. ``None`` if no text has all its votes."""
    probs = probs[np.isfinite(probs).all((1, 2))]
    if not len(probs):
        return None
    choices = probs.argmax(2)
    counts = np.stack([(choices == c).sum(1) for c in range(probs.shape[2])], axis=1)
    mean = probs.mean(1)
    of_vote = choices.reshape(len(choices), PHRASINGS, ORDERS)
    shares = mean.mean(0)
    return Diagnosis(
        len(probs),
        float(subjectivity.instance_agreement(counts).mean()),
        float((probs**2).sum(2).mean()),
        float(_entropy(mean).mean() / np.log(probs.shape[2])),
        subjectivity.alpha(counts),
        float((of_vote[:, :, 0] == of_vote[:, :, 1]).mean()),
        float((of_vote[:, 0] == of_vote[:, 1]).mean()),
        float(np.exp(_entropy(shares[None])[0]) / len(shares)),
    )


def accuracy(probs: Floats, columns: Sequence[int]) -> float:
    """Share of texts whose mean distribution over the votes is highest at ``columns``; unanswered texts count as wrong."""
    known = np.isfinite(probs).all((1, 2))
    right = np.where(np.isfinite(probs), probs, 0.0).mean(1).argmax(1) == np.asarray(columns)
    return float((right & known).mean())


def _entropy(probs: Floats) -> Floats:
    """In nats, over the last axis."""
    return -(probs * np.log(np.maximum(probs, 1e-12))).sum(-1)
