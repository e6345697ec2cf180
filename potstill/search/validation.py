"""The texts that a search scores its trials on; never the test split.

If the task has real texts besides the seeds, a sample of them, the validation split first. Otherwise, cross-validation
over the seeds (each fold's student trains without its seeds and, if enough texts are left, without those whose prompts
showed them), plus held-back texts: generated with their own data seed for validation only. Only held-back texts that
the teacher assigns to their target class count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potstill import draws
from potstill.rows import Example
from potstill.task import LabelledText, TaskData

FEWEST = 10  # real texts; fewer give too noisy a score
FOLDS = 2
HELD_BACK_SEED = 7919  # added to the data seed for held-back texts, so that no trial trains on them


@dataclass(frozen=True, slots=True)
class Validation:
    """``texts``: labelled; ``folds``: seeds held out together; ``real``: whether the texts are real."""

    texts: tuple[LabelledText, ...]
    folds: tuple[tuple[LabelledText, ...], ...] = ()
    real: bool = True

    @property
    def digest(self) -> str:
        """Hash of texts and folds."""
        texts = [[row.text, row.label] for row in self.texts]
        return draws.digest([texts, [[row.text for row in fold] for fold in self.folds]], size=8)

    def __str__(self) -> str:
        if self.real:
            return f"{len(self.texts)} validation texts"
        seeds = sum(map(len, self.folds))
        return f"{len(self.texts)} held-back texts and {seeds} seeds in {len(self.folds)} folds"


def from_real(data: TaskData, most: int, seed: int) -> Validation | None:
    """Up to ``most`` texts of the validation split, filled up with training texts, which no student trains on. A class
    missing from the draw gets one additional text.

    None if there are fewer than ``FEWEST``, or a class of the seeds is missing.
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
    """The ``per_class`` most confident texts of each class whose target the teacher confirms, and folds of the seeds.

    A class with a single seed stays out of the folds, since its student would have none.
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
