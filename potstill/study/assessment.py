"""What can be known of a task and a teacher before money is spent: the teacher votes on some texts, and its votes are
looked at.

    requests = plan(...)             # VOTES questions a text: two phrasings, each with classes and examples both ways round
    diagnose(votes, ...)             # agreement, entropy, alpha, consistency under class permutation

Li et al. (EMNLP 2023) found synthetic data to fail where people disagree; here the teacher's own votes stand for theirs
(``docs/measures.md`` says how far they can). Sampling needs no requests of its own: the teacher tells the probability of
every class, and two samples agree with the probability sum p^2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potstill import draws
from potstill.labels.calibration import calibrate
from potstill.labels.questions import VOTE, without
from potstill.measures import subjectivity
from potstill.prompts.contents import ChoosePrompt, ClassCard, card
from potstill.prompts.render import render
from potstill.rows import Request, Sampling
from potstill.task import LabelledText, Task
from potstill.teacher import TeacherIdentity

Floats = NDArray[np.float64]

TEXTS = 300  # asked about at most, unless another number is said
FEWEST_TEXTS, MOST_TEXTS = 10, 10_000  # that may be said: fewer tell nothing, more are no look beforehand
PHRASINGS, ORDERS = 2, 2
VOTES = PHRASINGS * ORDERS
OPINION = "opinion"  # strategy of the question whether people would agree
_SHOTS = 4  # examples a class in a question
_ROUNDS = 20  # of calibration


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Means over the texts that all votes answered, fractions of 1.

    ``agreement``: share of the votes that the commonest class has; ``sampled_agreement``: probability that two samples
    of one vote agree; ``entropy`` of the mean distribution, 1 where it is even; ``alpha``: Krippendorff's among the votes
    (``None`` where all are for one class); ``same_when_reordered``: first choice the same with classes and examples the
    other way round; ``same_when_rephrased``: the same under the other phrasing; ``class_coverage``: the exponential of
    the entropy of the classes' shares over the number of classes, 1 where the texts spread evenly over all.
    """

    texts: int
    agreement: float
    sampled_agreement: float
    entropy: float
    alpha: float | None
    same_when_reordered: float
    same_when_rephrased: float
    class_coverage: float


def plan(
    task: Task,
    seeds: Sequence[LabelledText],
    texts: Sequence[str],
    offered: Sequence[Sequence[str]],
    identity: TeacherIdentity,
    renderer: str,
    seed: int,
) -> Iterator[Request]:
    """``VOTES`` requests a text, text by text. ``offered``: the classes each text may be of."""
    for text, labels in zip(texts, offered, strict=True):
        for vote in range(VOTES):
            yield _vote(task, seeds, text, labels, vote, identity, renderer, seed)


def plan_seed_check(
    task: Task,
    seeds: Sequence[LabelledText],
    offered: Sequence[Sequence[str]],
    identity: TeacherIdentity,
    renderer: str,
    seed: int,
) -> list[Request]:
    """The same about every seed, with it and one of every other class left out of the prompt."""
    return [
        _vote(task, [seeds[j] for j in without(seeds, i)], asked.text, offered[i], vote, identity, renderer, seed)
        for i, asked in enumerate(seeds)
        for vote in range(VOTES)
    ]


def plan_opinions(task: Task, texts: Sequence[str], identity: TeacherIdentity, renderer: str) -> Iterator[Request]:
    """One request a text: would people agree on its class? The choices are "agree" and "disagree"."""
    names = ", ".join(task.prompt_name(label) for label in task.labels)
    cards = (
        ClassCard("agree", f"Everybody would put it into the same one of these classes: {names}."),
        ClassCard("disagree", f"People would differ on which of these classes it belongs to: {names}."),
    )
    question = f"{task.description} Would people agree on the class of the {task.text_kind}?"
    for text in texts:
        prompt = ChoosePrompt(question, task.text_kind, task.source, cards, (), text)
        yield _request(task, prompt, ("agree", "disagree"), OPINION, (), identity, renderer)


def calibrated(votes: Floats, spread: bool = True) -> Floats:
    """Distributions (texts, votes, classes) of raw log-probabilities, each vote calibrated over the texts by itself
    (``spread``: as if the classes were equally common; else as they come). NaN where nobody answered."""
    probs = np.full(votes.shape, np.nan)
    for vote in range(votes.shape[1]):
        answered = np.isfinite(votes[:, vote]).any(1)
        if answered.any():
            rounds = _ROUNDS if spread else 0
            probs[answered, vote] = calibrate(votes[answered, vote], rounds=rounds).probs
    return probs


def diagnose(probs: Floats) -> Diagnosis | None:
    """``probs``: (texts, VOTES, classes), as ``calibrated`` gives them; ``None`` where no text has all its votes."""
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
    """Share of rows whose mean distribution over the votes is highest at its column; unanswered rows count as wrong."""
    known = np.isfinite(probs).all((1, 2))
    right = np.where(np.isfinite(probs), probs, 0.0).mean(1).argmax(1) == np.asarray(columns)
    return float((right & known).mean())


def estimators(probs: Floats, opinions: Floats | None = None) -> Mapping[str, Floats]:
    """Three estimates of how far people agree on each text, (texts,) each; declared before any was tried.

    ``votes``: share of the commonest first choice among the votes; ``confidence``: largest probability of the votes' mean
    distribution; ``opinion``: the teacher's own probability that people would agree, given as ``opinions`` (texts,).
    """
    choices = probs.argmax(2)
    counts = np.stack([(choices == c).sum(1) for c in range(probs.shape[2])], axis=1)
    found = {"votes": subjectivity.instance_agreement(counts), "confidence": probs.mean(1).max(1)}
    return found if opinions is None else {**found, "opinion": opinions}


def _entropy(probs: Floats) -> Floats:
    """In nats, over the last axis."""
    return -(probs * np.log(np.maximum(probs, 1e-12))).sum(-1)


def _vote(
    task: Task,
    seeds: Sequence[LabelledText],
    text: str,
    labels: Sequence[str],
    vote: int,
    identity: TeacherIdentity,
    renderer: str,
    seed: int,
) -> Request:
    phrasing, backwards = divmod(vote, ORDERS)
    shown = _examples(seeds, labels, seed)
    cards = [card(task, label) for label in labels]
    if phrasing:
        # List prompts show neither task nor question, so the classes are put in other words too.
        cards = [ClassCard(one.name, f"fits every entry of which one can say: {one.description}") for one in cards]
    if backwards:
        shown, cards = shown[::-1], cards[::-1]
    names = ", ".join(one.name for one in cards)
    prompt = ChoosePrompt(
        task=task.description if phrasing == 0 else f"Every text is sorted under one heading: {names}.",
        text_kind=task.text_kind if phrasing == 0 else "entry",
        source=task.source,
        cards=tuple(cards),
        shown=tuple((one.text, task.prompt_name(one.label)) for one in shown),
        text=text,
    )
    choices = tuple(task.prompt_name(label) for label in labels)
    return _request(task, prompt, choices, VOTE, [one.example_id for one in shown], identity, renderer)


def _examples(seeds: Sequence[LabelledText], labels: Sequence[str], seed: int) -> list[LabelledText]:
    """Up to four seeds of every class offered, in a random order."""
    ordered = sorted((one for one in seeds if one.label in labels), key=lambda one: one.example_id)
    taken = [
        one
        for label in labels
        for one in draws.sample([o for o in ordered if o.label == label], _SHOTS, seed, "assess")
    ]
    return draws.shuffle(taken, seed, "assess order")


def _request(
    task: Task,
    prompt: ChoosePrompt,
    choices: tuple[str, ...],
    strategy: str,
    shown: Sequence[str],
    identity: TeacherIdentity,
    renderer: str,
) -> Request:
    messages, stop = render(prompt, renderer)
    return Request(
        stage="assess",
        task=task.name,
        strategy=strategy,
        renderer=renderer,
        provider=identity.provider,
        model=identity.model,
        weights_digest=identity.weights_digest,
        messages=messages,
        sampling=Sampling(temperature=0.0, max_tokens=16, stop=stop),
        choices=choices,
        exemplar_ids=tuple(shown),
    )
