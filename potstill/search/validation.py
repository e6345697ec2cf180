"""What a search scores its trials on: never the test split.

Where the task has real training texts, some of them, the validation split first. Where all there is are the seeds:
cross-validation over them (each fold's student is trained without its seeds, and without texts whose prompts showed
them, if enough are left), and texts that were written for validation alone, with a data seed of their own, of which
those count that the teacher took for the class they were written for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potstill import draws
from potstill.rows import Example
from potstill.task import LabelledText, TaskData

FEWEST = 10  # real texts; a score on fewer is a throw of dice
FOLDS = 2
HELD_BACK_SEED = 7919
"""Added to the data seed for the texts that are held back: no trial has them for its own."""


@dataclass(frozen=True, slots=True)
class Validation:
    """``texts`` with their classes; ``folds``: seeds that are held out together. ``real``: whether the texts are."""

    texts: tuple[LabelledText, ...]
    folds: tuple[tuple[LabelledText, ...], ...] = ()
    real: bool = True

    @property
    def digest(self) -> str:
        """Hash of all of it."""
        texts = [[row.text, row.label] for row in self.texts]
        return draws.digest([texts, [[row.text for row in fold] for fold in self.folds]], size=8)

    def __str__(self) -> str:
        if self.real:
            return f"{len(self.texts)} validation texts"
        seeds = sum(map(len, self.folds))
        return f"{len(self.texts)} texts held back and {seeds} seeds in {len(self.folds)} folds"


def from_real(data: TaskData, most: int, seed: int) -> Validation | None:
    """At most ``most`` texts of the validation split, filled up with training texts that no student is trained on
    where it is smaller; of a rare class that the draw has missed one more.

    ``None`` where these are fewer than ``FEWEST``, or miss a class that the seeds have.
    """
    order = draws.shuffle(list(data.validation), seed, "search validation")
    order += draws.shuffle(list(data.train), seed, "search validation")
    texts, rest = order[:most], order[most:]
    for label in {row.label: None for row in data.seeds}:
        if all(row.label != label for row in texts):
            texts += [row for row in rest if row.label == label][:1]
    missed = {row.label for row in data.seeds} - {row.label for row in texts}
    return None if missed or len(texts) < FEWEST else Validation(tuple(texts))


def from_written(
    seeds: Sequence[LabelledText], examples: Sequence[Example], labels: Sequence[str], per_class: int
) -> Validation:
    """The surest ``per_class`` texts of every class that the teacher agrees about, and folds of the seeds.

    A class with one seed stays out of the folds: its student would have none.
    """
    agreed = [one for one in examples if one.kept and one.teacher_label in (None, one.label)]
    agreed = [one for one in agreed if one.target_label in (None, one.label)]
    texts: list[LabelledText] = []
    folds: list[list[LabelledText]] = [[] for _ in range(FOLDS)]
    for label in labels:
        own = sorted((one for one in agreed if one.label == label), key=lambda one: -(one.confidence or 0.0))
        texts += [LabelledText(one.example_id, one.text, one.label) for one in own[:per_class]]
        of_class = [seed for seed in seeds if seed.label == label]
        if len(of_class) >= FOLDS:
            for number, seed in enumerate(of_class):
                folds[number % FOLDS].append(seed)
    return Validation(tuple(texts), tuple(tuple(fold) for fold in folds if fold), real=False)
