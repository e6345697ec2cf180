"""The interface of a strategy: three functions, of which most strategies need one or two.

    plan      what to ask the teacher to write    (task, seeds, augment, seed, counts) -> drafts
    parse     reads a reply                       (task, reply, finish reason, target) -> texts, dropped lines
    collect   texts not written by a teacher      (task, data, augment, seed) -> texts

``plan`` makes lazily, in label order, the drafts with index in [start, stop) of each class in ``counts``.
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
    """A text and its target class, None if the teacher is to choose it."""

    text: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Parsed:
    """The texts of a reply, in order, and the number of ``dropped`` lines by reason."""

    texts: list[Written]
    dropped: Mapping[str, int] = field(default_factory=dict)


Plan = Callable[[Task, Sequence[LabelledText], AugmentConfig, int, Mapping[str, tuple[int, int]]], Iterator[Draft]]
Parse = Callable[[Task, str, str | None, str], Parsed]
Collect = Callable[[Task, TaskData, AugmentConfig, int], Iterator[Written]]


def parse_texts(task: Task, reply: str, finish_reason: str | None, target: str) -> Parsed:
    """Every text of a reply, with ``target`` as its class."""
    names = [*task.labels, *map(task.prompt_name, task.labels)]
    read = read_reply(reply, finish_reason=finish_reason, class_names=names)
    return Parsed([Written(text, target) for text in read.texts], read.dropped)


@dataclass(frozen=True, slots=True)
class Strategy:
    """``collect``: None if the teacher writes the texts, otherwise nothing is planned. ``unlabelled``: texts come
    without a class, so relabelling must be on. ``alike``: near-duplicates are kept. ``problems``: what is missing to run
    it, for preflight."""

    description: str
    plan: Plan = lambda *_: iter(())
    parse: Parse = parse_texts
    collect: Collect | None = None
    unlabelled: bool = False
    alike: bool = False
    problems: Callable[[], list[Problem]] = list


def texts_wanted(augment: AugmentConfig) -> int:
    """Texts per class to have before selection."""
    return math.ceil(augment.per_class * augment.over_generate)
