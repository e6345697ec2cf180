"""Prompts as data; a renderer turns them into messages. Classes are named by ``Task.prompt_name``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from potstill.task import LabelledText, Task


@dataclass(frozen=True, slots=True)
class ClassCard:
    """A class as shown in a prompt: its name, a description and some of its texts (none in zero-shot)."""

    name: str
    description: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """A generation context (Li et al. 2023); fields are None if the task lists no options."""

    style: str | None = None
    length: str | None = None
    topic: str | None = None


@dataclass(frozen=True, slots=True)
class WritePrompt:
    """Asks for ``count`` texts of a class. ``cards`` holds every class shown, the target last.

    ``mix`` and ``alpha``: the texts belong ``alpha`` to the target class and ``1 - alpha`` to ``mix`` (PromptMix); None
    if they belong to one class. ``form``: classes as cards, or the prompt of an older method
    (``strategies/sahu2022.py``, ``strategies/gpt3mix.py``).
    """

    task: str
    text_kind: str
    source: str
    cards: tuple[ClassCard, ...]
    mix: str | None = None
    alpha: float | None = None
    context: Context = Context()
    count: int = 3
    form: Literal["cards", "same category", "text and class"] = "cards"

    @property
    def target(self) -> ClassCard:
        """The class to write for."""
        return self.cards[-1]


@dataclass(frozen=True, slots=True)
class ChoosePrompt:
    """Asks which of ``cards`` ``text`` belongs to. ``shown``: labelled texts, (text, class name) in prompt order.
    ``described``: whether the classes' descriptions are told. ``attribute``: what the classes are classes of."""

    task: str
    text_kind: str
    source: str
    cards: tuple[ClassCard, ...]
    shown: tuple[tuple[str, str], ...]
    text: str
    described: bool = True
    attribute: str = "Class"


@dataclass(frozen=True, slots=True)
class Draft:
    """A generation request before rendering.

    ``occurrence``: number of earlier draws of the same (class, partner, alpha), so that a draw keeps its identity
    regardless of what else is planned.
    """

    prompt: WritePrompt
    occurrence: int
    target_label: str
    mix_label: str | None = None
    alpha: float | None = None
    exemplar_ids: tuple[str, ...] = ()


def percentages(alpha: float) -> tuple[int, int]:
    """The shares of target and mix class in whole per cent, rounded: 0.55 gives (55, 45)."""
    target = round(alpha * 100)
    return target, 100 - target


def card(task: Task, label: str, examples: Sequence[LabelledText] = ()) -> ClassCard:
    """A class's card with the given examples."""
    return ClassCard(
        task.prompt_name(label), task.classes[label].description, tuple(example.text for example in examples)
    )
