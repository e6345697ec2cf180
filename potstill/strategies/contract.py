"""What a strategy is: three functions, of which most need one or two.

    plan      what to ask the teacher to write        (task, seeds, augment, seed, counts) -> drafts
    parse     what a reply holds                      (task, reply, finish reason, target) -> texts, lines dropped
    collect   texts that no teacher writes            (task, data, augment, seed) -> texts

A strategy with ``collect`` asks the teacher to write nothing: real texts, edited seeds, the user's own unlabelled texts.
The driver (``jobs/stages/generate.py``) knows none by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from potstill.config import AugmentConfig
from potstill.errors import Problem
from potstill.prompts.contents import Draft
from potstill.task import LabelledText, Task, TaskData
from potstill.texts.parsing import read_reply


@dataclass(frozen=True, slots=True)
class Written:
    """A text and the class it was written for; ``None``: not known yet, the teacher is to say."""

    text: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Parsed:
    """The texts of a reply, in order, and how many of its lines were ``dropped``, by reason."""

    texts: list[Written]
    dropped: Mapping[str, int] = field(default_factory=dict)


Plan = Callable[[Task, Sequence[LabelledText], AugmentConfig, int, Mapping[str, tuple[int, int]]], Iterator[Draft]]
Parse = Callable[[Task, str, str | None, str], Parsed]
Collect = Callable[[Task, TaskData, AugmentConfig, int], Iterator[Written]]


def parse_texts(task: Task, reply: str, finish_reason: str | None, target: str) -> Parsed:
    """Every text of a reply, for the class that was asked for."""
    names = [*task.labels, *map(task.prompt_name, task.labels)]
    read = read_reply(reply, finish_reason=finish_reason, class_names=names)
    return Parsed([Written(text, target) for text in read.texts], read.dropped)


def plan_nothing(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """No drafts: for strategies that collect."""
    return iter(())


@dataclass(frozen=True, slots=True)
class Strategy:
    """``says``: a line for people; ``collect`` is ``None`` where the teacher writes. ``unlabelled``: its texts come
    without a class, so that relabelling has to be on."""

    says: str
    plan: Plan = plan_nothing
    parse: Parse = parse_texts
    collect: Collect | None = None
    unlabelled: bool = False
    alike: bool = False
    problems: Callable[[], list[Problem]] = list


def texts_wanted(augment: AugmentConfig) -> int:
    """Texts a class to have before selection."""
    return math.ceil(augment.per_class * augment.over_generate)
