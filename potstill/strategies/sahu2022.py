"""Sahu et al. 2022 ("Data Augmentation for Intent Classification with Off-the-shelf Large Language Models"): the class
name and its seeds as a numbered list for the model to continue.

    The following sentences belong to the same category 'location':
    1. Where is Bonn ?
    2. What is the capital of Peru ?
    3.

No description, other classes or context. The order of the seeds is drawn for every request, since the list is short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from potstill.config import AugmentConfig
from potstill.prompts.contents import Draft
from potstill.strategies import few_shot
from potstill.task import LabelledText, Task


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """Few-shot drafts without contexts, in the form of the paper's prompt."""
    for draft in few_shot.plan(task, seeds, augment.model_copy(update={"contexts": False}), seed, counts):
        yield replace(draft, prompt=replace(draft.prompt, form="same category"))
