"""Zero-shot and few-shot generation (Li et al. 2023): the class, a context and, in few-shot, some of its seeds.

Few-shot draws ``shots`` seeds anew for every request; zero-shot shows only the class's description.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from potstill.config import AugmentConfig
from potstill.prompts.contents import Draft
from potstill.strategies.contexts import draw_context, draw_exemplars, exemplar_ids, write_prompt
from potstill.task import LabelledText, Task


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """The strategy's drafts (``contract.py``)."""
    for label in task.labels:
        for i in range(*counts.get(label, (0, 0))):
            exemplars = {label: draw_exemplars(seeds, label, augment.shots, seed, i)}
            prompt = write_prompt(task, augment, exemplars, context=draw_context(task, augment, label, seed, i))
            yield Draft(prompt, i, label, exemplar_ids=exemplar_ids(exemplars))


def plan_zero_shot(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """``plan`` without exemplars."""
    return plan(task, (), augment, seed, counts)
