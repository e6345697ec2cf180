"""What the teacher is asked, before any renderer has put it into words.

A prompt names classes as prompts spell them (``Task.prompt_name``); a renderer turns it into messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from potstill.task import LabelledText, Task


@dataclass(frozen=True, slots=True)
class ClassCard:
    """A class as a prompt shows it: its name, a sentence, and some of its texts (none in zero-shot)."""

    name: str
    description: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WritePrompt:
    """Write texts. ``cards`` holds every class shown, the one to write for last.

    ``mix`` and ``alpha``: the texts belong ``alpha`` to the target class and ``1 - alpha`` to ``mix``
    (PromptMix); None where they belong to one class. ``style``, ``length`` and ``topic`` are generation
    contexts (Li et al. 2023), where the task has some. ``count`` texts are asked for. ``form``: descriptions and
    seeds as cards; or as two older methods put it (``strategies/sahu2022.py``, ``strategies/gpt3mix.py``).
    """

    task: str
    text_kind: str
    source: str
    cards: tuple[ClassCard, ...]
    mix: str | None = None
    alpha: float | None = None
    style: str | None = None
    length: str | None = None
    topic: str | None = None
    count: int = 3
    form: Literal["cards", "same category", "text and class"] = "cards"

    @property
    def target(self) -> ClassCard:
        """The class to write for."""
        return self.cards[-1]


@dataclass(frozen=True, slots=True)
class ChoosePrompt:
    """Which of ``cards`` does ``text`` belong to? ``shown``: labelled texts in the order to show them."""

    task: str
    text_kind: str
    source: str
    cards: tuple[ClassCard, ...]
    shown: tuple[tuple[str, str], ...]
    text: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A generation request before rendering.

    ``occurrence``: this is the n-th draw of the same (class, partner, alpha, context); it counts up from 0,
    so that a draw keeps its identity whatever else is in the plan.
    """

    prompt: WritePrompt
    occurrence: int
    target_label: str
    mix_label: str | None = None
    alpha: float | None = None
    exemplar_ids: tuple[str, ...] = ()


def percentages(alpha: float) -> tuple[int, int]:
    """The shares of target and mix class in whole per cent; 0.55 gives (55, 45), never 44."""
    target = round(alpha * 100)
    return target, 100 - target


def card(task: Task, label: str, examples: Sequence[LabelledText] = ()) -> ClassCard:
    """The card of a class with the given examples."""
    return ClassCard(
        task.prompt_name(label), task.classes[label].description, tuple(example.text for example in examples)
    )
