"""Sahu et al. 2022 ("Data Augmentation for Intent Classification with Off-the-shelf Large Language Models"): the
category's name and its seeds as a numbered list, which the model goes on with.

    The following sentences belong to the same category 'location':
    1. Where is Bonn ?
    2. What is the capital of Peru ?
    3.

No description, no other class, no context. The order of the seeds is drawn for every request, since the list is short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from potstill.config import AugmentConfig
from potstill.prompts.contents import Draft, WritePrompt, card
from potstill.strategies.contexts import draw_exemplars
from potstill.task import LabelledText, Task


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """Drafts with index in [start, stop) of each label of ``counts``, in label order."""
    for label in task.labels:
        for i in range(*counts.get(label, (0, 0))):
            exemplars = draw_exemplars(seeds, label, augment.shots, seed, i)
            prompt = WritePrompt(
                task=task.description,
                text_kind=task.text_kind,
                source=task.source,
                cards=(card(task, label, exemplars),),
                count=augment.texts_per_reply,
                form="same category",
            )
            yield Draft(prompt, i, label, exemplar_ids=tuple(example.example_id for example in exemplars))
