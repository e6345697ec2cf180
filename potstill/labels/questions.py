"""What the teacher is asked about the texts it wrote: to which class does each belong?

    requests = plan_relabel(...)        # ``votes`` requests a text, text by text
    checks = plan_seed_check(...)       # the same questions about the labelled seeds, each left out of its own prompt

PromptMix asks once, showing the nearest classes with their seeds (Sahu et al. 2023, section 3). Here each
text is asked about ``votes`` times with the seeds in another order, since small models lean towards the
last class they read; the answers are raw log-probabilities, and what they mean is settled in ``evidence``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from potstill import draws
from potstill.config import RelabelConfig
from potstill.prompts.contents import ChoosePrompt, WritePrompt, card
from potstill.prompts.render import render
from potstill.rows import Request, Sampling
from potstill.task import LabelledText, Task
from potstill.teacher import TeacherIdentity

VOTE, CHANNEL = "relabel", "relabel_channel"  # strategies of requests
_CHANNEL_CLASSES = 4


def class_texts(task: Task) -> list[str]:
    """What stands for each class in embedding space: its name and description, in label order."""
    return [f"{task.prompt_name(label)}: {task.classes[label].description}" for label in task.labels]


def class_centres(
    task: Task, seeds: Sequence[LabelledText], seed_embeddings: np.ndarray, class_embeddings: np.ndarray
) -> np.ndarray:
    """Unit vectors (n_classes, width): mean of a class's own embedding and those of its seeds."""
    centres = np.array(class_embeddings, dtype=np.float32)
    for row, label in enumerate(task.labels):
        own = [i for i, example in enumerate(seeds) if example.label == label]
        if own:
            centres[row] = (class_embeddings[row] + seed_embeddings[own].sum(0)) / (1 + len(own))
    return centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)


def uses_channel(relabel: RelabelConfig, task: Task, identity: TeacherIdentity, renderer: str) -> bool:
    """Whether texts are also scored under each class's writing prompt (the noisy channel of Min et al. 2022).

    auto: where the teacher gives log-probabilities of whole texts (local, list prompts) and has at most 4 classes
    to compare, since the cost grows with the classes and the gain was seen with two.
    """
    if relabel.channel != "auto":
        return relabel.channel == "on"
    return (
        identity.provider == "embedded"
        and renderer == "list"
        and min(len(task.labels), relabel.neighbours) <= _CHANNEL_CLASSES
    )


def plan_relabel(
    task: Task,
    seeds: Sequence[LabelledText],
    texts: Sequence[str],
    text_embeddings: np.ndarray,
    seed_embeddings: np.ndarray,
    class_embeddings: np.ndarray,
    relabel: RelabelConfig,
    identity: TeacherIdentity,
    renderer: str,
    seed: int,
) -> Iterator[Request]:
    """The same number of requests for each text, text by text: its votes, then its channel scores if asked for.

    A text's requests are made when they are asked for. Embeddings: rows of unit length for ``texts``, ``seeds`` and ``class_texts(task)``. Where there are more
    classes than ``neighbours``, the nearest ones are offered.
    """
    offered = offer(
        task, text_embeddings, class_centres(task, seeds, seed_embeddings, class_embeddings), relabel.neighbours
    )
    ask = _Asker(task, relabel, identity, renderer, seed, "relabel")
    return (request for text, labels in zip(texts, offered, strict=True) for request in ask.about(text, labels, seeds))


def plan_seed_check(
    task: Task,
    seeds: Sequence[LabelledText],
    seed_embeddings: np.ndarray,
    class_embeddings: np.ndarray,
    relabel: RelabelConfig,
    identity: TeacherIdentity,
    renderer: str,
    seed: int,
) -> list[Request]:
    """The same questions about each seed, with that seed and one of every other class left out.

    Were only the seed itself left out, its class would be the one with the fewest examples in the prompt, and
    a small model leans away from it: on TREC-6, SUBJ and SMS spam it was right on a quarter of the seeds.
    """
    ask = _Asker(task, relabel, identity, renderer, seed, "seed_check")
    requests = []
    for i, asked in enumerate(seeds):
        others = without(seeds, i)
        centres = class_centres(task, [seeds[j] for j in others], seed_embeddings[others], class_embeddings)
        labels = offer(task, seed_embeddings[i : i + 1], centres, relabel.neighbours)[0]
        requests += ask.about(asked.text, labels, [seeds[j] for j in others])
    return requests


def without(seeds: Sequence[LabelledText], asked: int) -> list[int]:
    """The seeds to show when ``asked`` is the question: the r-th of every class is left out if it is its class's r-th."""
    of_class: dict[str, list[int]] = {}
    for i, example in enumerate(seeds):
        of_class.setdefault(example.label, []).append(i)
    rank = of_class[seeds[asked].label].index(asked)
    left_out = {own[rank % len(own)] for own in of_class.values()}
    return [i for i in range(len(seeds)) if i not in left_out]


def count_questions(task: Task, relabel: RelabelConfig, identity: TeacherIdentity, renderer: str) -> int:
    """How many requests there are about each text."""
    channel = uses_channel(relabel, task, identity, renderer)
    return relabel.votes + (min(len(task.labels), relabel.neighbours) if channel else 0)


def sample_questions(
    task: Task,
    seeds: Sequence[LabelledText],
    relabel: RelabelConfig,
    identity: TeacherIdentity,
    renderer: str,
    seed: int,
) -> list[Request]:
    """All that is asked about one text, by the example of the first seed (or of a sentence of the task's, where there
    are no seeds): what a plan counts with."""
    labels = list(task.labels[: relabel.neighbours])
    text = seeds[0].text if seeds else task.description
    return _Asker(task, relabel, identity, renderer, seed, "relabel").about(text, labels, seeds[1:])


def offer(task: Task, embeddings: np.ndarray, centres: np.ndarray, neighbours: int) -> list[list[str]]:
    if len(task.labels) <= neighbours:
        return [list(task.labels)] * len(embeddings)
    nearest = np.argsort(-(embeddings @ centres.T), axis=1)[:, :neighbours]
    # In label order: two texts with the same neighbours then share their whole prompt up to the text.
    return [[task.labels[column] for column in sorted(row)] for row in nearest]


@dataclass(frozen=True, slots=True)
class _Asker:
    """Makes the requests about one text; everything but the text, its classes and the seeds shown is fixed."""

    task: Task
    relabel: RelabelConfig
    identity: TeacherIdentity
    renderer: str
    seed: int
    stage: str

    def about(self, text: str, labels: Sequence[str], seeds: Sequence[LabelledText]) -> list[Request]:
        shown = [example for example in seeds if example.label in labels]
        requests = [self._vote(vote, text, labels, shown) for vote in range(self.relabel.votes)]
        if uses_channel(self.relabel, self.task, self.identity, self.renderer):
            requests += [self._channel(text, label, shown) for label in labels]
        return requests

    def _vote(self, vote: int, text: str, labels: Sequence[str], shown: Sequence[LabelledText]) -> Request:
        # Seeds in a random order, and reversed in every second vote, so that no class is always last.
        order = draws.shuffle(
            sorted(shown, key=lambda example: example.example_id), self.seed, "relabel order", vote // 2
        )
        order = self._at_most_shots(order)
        shown = order[::-1] if vote % 2 else order
        cards = [card(self.task, label) for label in labels]
        prompt = ChoosePrompt(
            task=self.task.description,
            text_kind=self.task.text_kind,
            source=self.task.source,
            cards=tuple(cards[::-1] if vote % 2 else cards),
            shown=tuple((example.text, self.task.prompt_name(example.label)) for example in shown),
            text=text,
        )
        choices = tuple(self.task.prompt_name(label) for label in labels)
        return self._request(prompt, choices, VOTE, shown, None)

    def _channel(self, text: str, label: str, shown: Sequence[LabelledText]) -> Request:
        own = self._at_most_shots([example for example in shown if example.label == label])
        prompt = WritePrompt(
            self.task.description, self.task.text_kind, self.task.source, (card(self.task, label, own),)
        )
        return self._request(prompt, (" ".join(text.split()),), CHANNEL, own, label)

    def _at_most_shots(self, seeds: Sequence[LabelledText]) -> list[LabelledText]:
        """The first ``relabel.shots`` of every class: other votes see others, and the prompt stays short."""
        taken: Counter[str] = Counter()
        kept = []
        for example in seeds:
            taken[example.label] += 1
            if taken[example.label] <= self.relabel.shots:
                kept.append(example)
        return kept

    def _request(
        self,
        prompt: ChoosePrompt | WritePrompt,
        choices: tuple[str, ...],
        strategy: str,
        shown: Sequence[LabelledText],
        label: str | None,
    ) -> Request:
        messages, stop = render(prompt, self.renderer)
        return Request(
            stage=self.stage,
            task=self.task.name,
            strategy=strategy,
            renderer=self.renderer,
            provider=self.identity.provider,
            model=self.identity.model,
            weights_digest=self.identity.weights_digest,
            messages=messages,
            sampling=Sampling(temperature=0.0, max_tokens=16, stop=stop),
            choices=choices,
            target_label=label,
            exemplar_ids=tuple(example.example_id for example in shown),
        )
