"""Zero-shot and few-shot generation (Li et al. 2023): the class, a context, and, few-shot, some seeds of the class.

Few-shot draws ``shots`` seeds anew for every request; zero-shot shows the class's description and no seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from potstill.config import AugmentConfig
from potstill.prompts.contents import Draft, WritePrompt, card
from potstill.strategies.contexts import Context, draw_context, draw_exemplars
from potstill.task import LabelledText, Task


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """Drafts with index in [start, stop) of each label of ``counts``, in label order."""
    for label in task.labels:
        for i in range(*counts.get(label, (0, 0))):
            exemplars = draw_exemplars(seeds, label, augment.shots, seed, i)
            context = draw_context(task, label, seed, i) if augment.contexts else Context()
            prompt = WritePrompt(
                task=task.description,
                text_kind=task.text_kind,
                source=task.source,
                cards=(card(task, label, exemplars),),
                style=context.style,
                length=context.length,
                topic=context.topic,
                count=augment.texts_per_reply,
            )
            yield Draft(prompt, i, label, exemplar_ids=tuple(example.example_id for example in exemplars))


def plan_zero_shot(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """``plan`` without exemplars; ``seeds`` stay unseen."""
    return plan(task, (), augment.model_copy(update={"shots": 0}), seed, counts)
