"""Requests that ask the teacher for a text's class.

    questions = Questions(task, seeds, relabel, teacher, seed)
    questions.about_texts(texts, vectors, PHRASINGS)       # one request per text and phrasing
    questions.about_known(vectors, phrasings)              # the same about the seeds and the class descriptions

PromptMix asks once and shows the nearest classes with their seeds (Sahu et al. 2023, section 3). What a small model
answers depends on the phrasing more than on anything else: on SUBJ a 135M model was right on 0.50 of the texts when shown
descriptions and seeds, on 0.70 with the class names alone; on SMS spam it was the other way round. So several are tried
on some of the texts, and those that tell most (``evidence.rank_phrasings``) are used for all. Answers are raw
log-probabilities; ``evidence`` interprets them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from potstill import draws
from potstill.config import RelabelConfig
from potstill.labels.prototypes import PER_CLASS, class_prototypes, describe_classes
from potstill.prompts.contents import ChoosePrompt, card
from potstill.prompts.render import make_request
from potstill.rows import Request, Sampling
from potstill.task import LabelledText, Task
from potstill.teacher import Teacher

VOTE = "relabel"  # ``strategy`` of these requests
ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Phrasing:
    """A way to ask: with or without class descriptions, with or without seeds, and in which order. Odd orders reverse
    classes and seeds of the even order before, so that no class is always last."""

    described: bool = True
    shown: bool = True
    order: int = 0

    def __str__(self) -> str:
        told = "descriptions" if self.described else "names"
        order = f", order {self.order + 1}" if self.order else ""
        return told + (" and seeds" if self.shown else "") + order


PHRASINGS = tuple(
    Phrasing(described, shown, order)
    for described, shown in ((True, True), (True, False), (False, False))
    for order in (0, 1)
)
"""Those that are tried."""


_FEWEST_TRIED = 16


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Unit rows for the texts, the seeds and the class descriptions (``prototypes.describe_classes``)."""

    texts: np.ndarray
    seeds: np.ndarray
    descriptions: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """The rows of each class's name and description together, in label order."""
        return self.descriptions[::PER_CLASS]

    @property
    def known(self) -> np.ndarray:
        """Seeds and descriptions together: all texts whose class is known."""
        return np.concatenate([self.seeds, self.descriptions])


@dataclass(frozen=True, slots=True)
class Questions:
    """Makes the requests. ``seed``: data seed that decides the order of the examples shown."""

    task: Task
    seeds: Sequence[LabelledText]
    relabel: RelabelConfig
    teacher: Teacher
    seed: int

    @property
    def usual(self) -> tuple[Phrasing, ...]:
        """The phrasings without a trial: everything is told, in ``relabel.votes`` orders."""
        return tuple(Phrasing(order=order) for order in range(self.relabel.votes))

    def about_texts(
        self, texts: Sequence[str], vectors: Embeddings, phrasings: Sequence[Phrasing] = ()
    ) -> Iterator[Request]:
        """One request per text and phrasing (default: ``usual``), made lazily; each offers the ``relabel.neighbours``
        nearest classes."""
        columns = seed_columns(self.task, self.seeds)
        prototypes = class_prototypes(vectors.seeds, columns, vectors.classes)
        offered = offer(self.task, vectors.texts, prototypes, self.relabel.neighbours)
        return (
            request
            for text, labels in zip(texts, offered, strict=True)
            for request in self._about(text, labels, self.seeds, "relabel", phrasings)
        )

    def about_known(self, vectors: Embeddings, phrasings: Sequence[Phrasing] = ()) -> list[Request]:
        """The same requests about each seed, then about each text of ``prototypes.describe_classes``. A seed's prompts
        leave out that seed and one of every other class.

        If only the seed itself were left out, its class would have the fewest examples, which biases small models
        against it: on TREC-6, SUBJ and SMS spam one classified only a quarter of the seeds correctly.
        """
        columns = seed_columns(self.task, self.seeds)
        requests = []
        for i, asked in enumerate(self.seeds):
            others = without(self.seeds, i)
            prototypes = class_prototypes(vectors.seeds[others], columns[others], vectors.classes)
            labels = offer(self.task, vectors.seeds[i : i + 1], prototypes, self.relabel.neighbours)[0]
            shown = [self.seeds[j] for j in others]
            requests += self._about(asked.text, labels, shown, "seed_check", phrasings)
        prototypes = class_prototypes(vectors.seeds, columns, vectors.classes)
        offered = offer(self.task, vectors.descriptions, prototypes, self.relabel.neighbours)
        for described, labels in zip(describe_classes(self.task), offered, strict=True):
            requests += self._about(described.text, labels, self.seeds, "seed_check", phrasings)
        return requests

    def sample(self) -> list[Request]:
        """All requests about one text, for cost estimates: the first seed, or the task's description without seeds."""
        labels = self.task.labels[: self.relabel.neighbours]
        text = self.seeds[0].text if self.seeds else self.task.description
        return self._about(text, labels, self.seeds[1:], "relabel", ())

    def times(self, texts: int) -> int:
        """How often ``sample`` is asked, at most, for so many texts: about them, the known texts and in the trial."""
        known = len(self.seeds) + PER_CLASS * len(self.task.labels)
        return texts + known + math.ceil(self.tried(texts) * len(PHRASINGS) / self.relabel.votes)

    def tried(self, texts: int) -> int:
        """On how many of so many texts all phrasings are tried: few enough that the trial asks no more than one vote on
        each text does, and none if that is too few to tell the phrasings apart."""
        found = min(self.relabel.trial, texts // len(PHRASINGS))
        return found if found >= _FEWEST_TRIED else 0

    def _about(
        self,
        text: str,
        labels: Sequence[str],
        seeds: Sequence[LabelledText],
        stage: str,
        phrasings: Sequence[Phrasing],
    ) -> list[Request]:
        shown = [example for example in seeds if example.label in labels]
        return [self._ask(phrasing, text, labels, shown, stage) for phrasing in phrasings or self.usual]

    def _ask(
        self, phrasing: Phrasing, text: str, labels: Sequence[str], shown: Sequence[LabelledText], stage: str
    ) -> Request:
        by_id = sorted(shown if phrasing.shown else (), key=lambda example: example.example_id)
        order = self._at_most_shots(draws.shuffle(by_id, self.seed, "relabel order", phrasing.order // 2))
        cards = [card(self.task, label) for label in labels]
        if phrasing.order % 2:
            order, cards = order[::-1], cards[::-1]
        prompt = ChoosePrompt(
            task=self.task.description,
            text_kind=self.task.text_kind,
            source=self.task.source,
            cards=tuple(cards),
            shown=tuple((example.text, self.task.prompt_name(example.label)) for example in order),
            text=text,
            described=phrasing.described,
            attribute="Class" if phrasing.described else self.task.attribute,
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
