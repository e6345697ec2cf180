"""Requests that ask the teacher for a text's class.

    questions = Questions(task, seeds, relabel, teacher, seed)
    questions.about_texts(texts, vectors)     # ``relabel.votes`` requests per text
    questions.about_seeds(vectors)            # the same about each labelled seed, which its own prompt leaves out

PromptMix asks once and shows the nearest classes with their seeds (Sahu et al. 2023, section 3). Small models are
biased towards the last class in the prompt, so we ask ``votes`` times, with the seeds in different orders. Answers are
raw log-probabilities; ``evidence`` interprets them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from potstill import draws
from potstill.config import RelabelConfig
from potstill.labels.prototypes import class_prototypes
from potstill.prompts.contents import ChoosePrompt, card
from potstill.prompts.render import make_request
from potstill.rows import Request, Sampling
from potstill.task import LabelledText, Task
from potstill.teacher import Teacher

VOTE = "relabel"  # ``strategy`` of these requests
ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Unit rows for the texts, the seeds and the classes (``prototypes.class_texts``)."""

    texts: np.ndarray
    seeds: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True, slots=True)
class Questions:
    """Makes the requests. ``seed``: data seed that decides the order of the examples shown."""

    task: Task
    seeds: Sequence[LabelledText]
    relabel: RelabelConfig
    teacher: Teacher
    seed: int

    def about_texts(self, texts: Sequence[str], vectors: Embeddings) -> Iterator[Request]:
        """``relabel.votes`` requests per text, made lazily; each offers the ``relabel.neighbours`` nearest classes."""
        columns = seed_columns(self.task, self.seeds)
        prototypes = class_prototypes(vectors.seeds, columns, vectors.classes)
        offered = offer(self.task, vectors.texts, prototypes, self.relabel.neighbours)
        return (
            request
            for text, labels in zip(texts, offered, strict=True)
            for request in self._about(text, labels, self.seeds, "relabel")
        )

    def about_seeds(self, vectors: Embeddings) -> list[Request]:
        """The same requests about each seed. Their prompts leave out that seed and one of every other class.

        If only the seed itself were left out, its class would have the fewest examples, which biases small models
        against it: on TREC-6, SUBJ and SMS spam one classified only a quarter of the seeds correctly.
        """
        columns = seed_columns(self.task, self.seeds)
        requests = []
        for i, asked in enumerate(self.seeds):
            others = without(self.seeds, i)
            prototypes = class_prototypes(vectors.seeds[others], columns[others], vectors.classes)
            labels = offer(self.task, vectors.seeds[i : i + 1], prototypes, self.relabel.neighbours)[0]
            requests += self._about(asked.text, labels, [self.seeds[j] for j in others], "seed_check")
        return requests

    def sample(self) -> list[Request]:
        """All requests about one text, for cost estimates: the first seed, or the task's description without seeds."""
        labels = self.task.labels[: self.relabel.neighbours]
        text = self.seeds[0].text if self.seeds else self.task.description
        return self._about(text, labels, self.seeds[1:], "relabel")

    def _about(self, text: str, labels: Sequence[str], seeds: Sequence[LabelledText], stage: str) -> list[Request]:
        shown = [example for example in seeds if example.label in labels]
        return [self._vote(vote, text, labels, shown, stage) for vote in range(self.relabel.votes)]

    def _vote(self, vote: int, text: str, labels: Sequence[str], shown: Sequence[LabelledText], stage: str) -> Request:
        # Seeds in random order, reversed in every second vote, so that no class is always last.
        by_id = sorted(shown, key=lambda example: example.example_id)
        order = self._at_most_shots(draws.shuffle(by_id, self.seed, "relabel order", vote // 2))
        cards = [card(self.task, label) for label in labels]
        if vote % 2:
            order, cards = order[::-1], cards[::-1]
        prompt = ChoosePrompt(
            task=self.task.description,
            text_kind=self.task.text_kind,
            source=self.task.source,
            cards=tuple(cards),
            shown=tuple((example.text, self.task.prompt_name(example.label)) for example in order),
            text=text,
        )
        return make_request(
            prompt,
            self.teacher,
            Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS),
            stage=stage,
            task=self.task.name,
            strategy=VOTE,
            choices=tuple(self.task.prompt_name(label) for label in labels),
            exemplar_ids=tuple(example.example_id for example in order),
        )

    def _at_most_shots(self, seeds: Sequence[LabelledText]) -> list[LabelledText]:
        """The first ``relabel.shots`` of every class. Prompts stay short, and votes show different seeds."""
        taken: Counter[str] = Counter()
        kept = []
        for example in seeds:
            taken[example.label] += 1
            if taken[example.label] <= self.relabel.shots:
                kept.append(example)
        return kept


def seed_columns(task: Task, seeds: Sequence[LabelledText]) -> np.ndarray:
    """The class index of each seed, (n_seeds,)."""
    return np.array([task.labels.index(example.label) for example in seeds], dtype=int)


def without(seeds: Sequence[LabelledText], asked: int) -> list[int]:
    """Indices of the seeds to show when asking about seed ``asked``, the r-th of its class: all but each class's r-th."""
    of_class: dict[str, list[int]] = {}
    for i, example in enumerate(seeds):
        of_class.setdefault(example.label, []).append(i)
    rank = of_class[seeds[asked].label].index(asked)
    left_out = {own[rank % len(own)] for own in of_class.values()}
    return [i for i in range(len(seeds)) if i not in left_out]


def offer(task: Task, embeddings: np.ndarray, prototypes: np.ndarray, neighbours: int) -> list[list[str]]:
    """The classes offered for each text: the ``neighbours`` with the nearest prototypes, or all if there are no more."""
    if len(task.labels) <= neighbours:
        return [list(task.labels)] * len(embeddings)
    nearest = np.argsort(-(embeddings @ prototypes.T), axis=1)[:, :neighbours]
    # In label order, so that texts with the same neighbours share their prompt up to the text.
    return [[task.labels[column] for column in sorted(row)] for row in nearest]
