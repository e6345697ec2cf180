"""What a generation prompt shows: contexts (Li et al. 2023, section 3.2) and seeds as exemplars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill import draws
from potstill.config import AugmentConfig
from potstill.prompts.contents import Context, WritePrompt, card
from potstill.task import LabelledText, Task

Exemplars = Mapping[str, Sequence[LabelledText]]
"""Seeds by class, in the order shown; the target class is last."""


def draw_context(task: Task, augment: AugmentConfig, label: str, seed: int, *key: draws.Key) -> Context:
    """One of the task's styles, lengths and topics; a class's own topics take precedence. Empty if switched off."""
    if not augment.contexts:
        return Context()
    topics = task.contexts.class_topics.get(label) or task.contexts.topics

    def one(options: Sequence[str], name: str) -> str | None:
        return draws.pick(options, seed, name, label, *key) if options else None

    return Context(one(task.contexts.styles, "style"), one(task.contexts.lengths, "length"), one(topics, "topic"))


def draw_exemplars(
    seeds: Sequence[LabelledText], label: str, shots: int, seed: int, *key: draws.Key
) -> list[LabelledText]:
    """``shots`` seeds of ``label`` in random order; fewer shots are a prefix of more."""
    own = sorted((example for example in seeds if example.label == label), key=lambda example: example.example_id)
    return draws.sample(own, shots, seed, "exemplars", label, *key)


def write_prompt(task: Task, augment: AugmentConfig, exemplars: Exemplars, **content: Any) -> WritePrompt:
    """A prompt that shows ``exemplars``. ``content``: the remaining fields of ``WritePrompt``."""
    return WritePrompt(
        task=task.description,
        text_kind=task.text_kind,
        source=task.source,
        cards=tuple(card(task, label, shown) for label, shown in exemplars.items()),
        count=augment.texts_per_reply,
        **content,
    )


def exemplar_ids(exemplars: Exemplars) -> tuple[str, ...]:
    """The ids of all exemplars, in the order shown."""
    return tuple(example.example_id for shown in exemplars.values() for example in shown)
