"""GPT3Mix (Yoo et al., Findings of EMNLP 2021): the prompt shows labelled texts of several classes, and the model writes
a new text *and* its label.

    Each line is a question with its class. The class is one of 'location' and 'human'.
    Question: Where is Bonn ? (Class: location)
    Question: Who wrote Faust ? (Class: human)
    Question:

The label in the reply is the text's target class; if the task has no such class, it is the class that the draw asked
for. For the paper's soft labels, the model's distribution over label words, ``potstill study`` sets ``relabel: {soft:
true, target_prior: 1/classes}`` (``potstill/study/sources.py``).
Departure: every draw has a class, whose example comes last, so that all classes get equally many draws.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from potstill import draws
from potstill.config import AugmentConfig
from potstill.prompts.contents import Draft
from potstill.strategies.contexts import draw_exemplars, exemplar_ids, write_prompt
from potstill.strategies.contract import Parsed, Written
from potstill.task import LabelledText, Task
from potstill.texts.parsing import clean_line, read_reply

_LABEL = re.compile(r"\s*\(\s*class\s*:\s*([^()]*?)\s*\)?\s*$", re.IGNORECASE)


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """The strategy's drafts (``contract.py``)."""
    for label in task.labels:
        for i in range(*counts.get(label, (0, 0))):
            others = [other for other in task.labels if other != label]
            group = draws.sample(others, augment.classes_per_prompt - 1, seed, "group", label, i)
            exemplars = {
                name: draw_exemplars(seeds, name, augment.shots, seed, "mix", label, i) for name in (*group, label)
            }
            prompt = write_prompt(task, augment, exemplars, form="text and class")
            yield Draft(prompt, i, label, exemplar_ids=exemplar_ids(exemplars))


def parse(task: Task, reply: str, finish_reason: str | None, target: str) -> Parsed:
    """Every text of a reply, with the class named after it, or ``target`` if the task has no such class."""
    names = {task.prompt_name(label).casefold(): label for label in task.labels}
    names |= {label.casefold(): label for label in task.labels}
    kind = re.compile(rf"^{re.escape(task.text_kind)}\s*:\s*", re.IGNORECASE)
    found = []
    read = read_reply(reply, finish_reason=finish_reason)
    for line in read.texts:
        line = kind.sub("", line)
        named = _LABEL.search(line)
        text = clean_line(line[: named.start()] if named else line)
        label = names.get(named[1].strip(" '\"").casefold(), target) if named else target
        if sum(character.isalpha() for character in text) >= 2:
            found.append(Written(text, label))
    return Parsed(found, read.dropped)
