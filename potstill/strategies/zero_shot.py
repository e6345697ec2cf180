"""Zero-shot generation (Li et al. 2023): the class's description and a context, no example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from potstill.config import AugmentConfig
from potstill.prompts.contents import Draft
from potstill.strategies import few_shot
from potstill.task import LabelledText, Task


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """Drafts with index in [start, stop) of each label of ``counts``, in label order; ``seeds`` stay unseen."""
    return few_shot.plan(task, (), augment.model_copy(update={"shots": 0}), seed, counts)
