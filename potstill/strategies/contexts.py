"""What a prompt shows besides the class: generation contexts (Li et al. 2023, section 3.2) and exemplars among the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potstill import draws
from potstill.task import LabelledText, Task


@dataclass(frozen=True, slots=True)
class Context:
    """What a request asks for besides the class; None where the task gives no choice."""

    style: str | None = None
    length: str | None = None
    topic: str | None = None


def draw_context(task: Task, label: str, seed: int, *key: draws.Key) -> Context:
    """One of the task's styles, lengths and topics (the class's own topics before the task's)."""
    topics = task.contexts.class_topics.get(label) or task.contexts.topics

    def one(options: Sequence[str], name: str) -> str | None:
        return draws.pick(options, seed, name, label, *key) if options else None

    return Context(one(task.contexts.styles, "style"), one(task.contexts.lengths, "length"), one(topics, "topic"))


def draw_exemplars(
    seeds: Sequence[LabelledText], label: str, shots: int, seed: int, *key: draws.Key
) -> list[LabelledText]:
    """``shots`` seeds of ``label`` in a random order; fewer shots are a prefix of more."""
    own = sorted((example for example in seeds if example.label == label), key=lambda example: example.example_id)
    return draws.sample(own, shots, seed, "exemplars", label, *key)
