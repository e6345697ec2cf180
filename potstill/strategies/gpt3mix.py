"""GPT3Mix (Yoo et al., Findings of EMNLP 2021): labelled texts of several classes in the prompt; the model writes a
new text *and* its label.

    Each line is a question with its class. The class is one of 'location' and 'human'.
    Question: Where is Bonn ? (Class: location)
    Question: Who wrote Faust ? (Class: human)
    Question:

The label in the reply is the class the text was written for; one that is none of the task's leaves the class whose
turn it was. The paper's soft label, the model's distribution over label words after the text, is what relabelling
asks for: ``relabel: {soft: true, target_prior: 1/classes}``, which ``potstill study`` sets (``potstill/study/sources.py``).
Departure: a draw belongs to a class, whose example stands last, so that every class is written for equally often.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from potstill import draws
from potstill.config import AugmentConfig
from potstill.prompts.contents import Draft, WritePrompt, card
from potstill.strategies.contexts import draw_exemplars
from potstill.strategies.contract import Parsed, Written
from potstill.task import LabelledText, Task
from potstill.texts.parsing import clean_line, read_reply

_LABEL = re.compile(r"\s*\(\s*class\s*:\s*([^()]*?)\s*\)?\s*$", re.IGNORECASE)


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """Drafts with index in [start, stop) of each label of ``counts``, in label order."""
    for label in task.labels:
        for i in range(*counts.get(label, (0, 0))):
            others = [other for other in task.labels if other != label]
            group = draws.sample(others, augment.classes_per_prompt - 1, seed, "group", label, i)
            shown = [*group, label]
            exemplars = {name: draw_exemplars(seeds, name, augment.shots, seed, "mix", label, i) for name in shown}
            prompt = WritePrompt(
                task=task.description,
                text_kind=task.text_kind,
                source=task.source,
                cards=tuple(card(task, name, exemplars[name]) for name in shown),
                count=augment.texts_per_reply,
                form="text and class",
            )
            ids = tuple(example.example_id for name in shown for example in exemplars[name])
            yield Draft(prompt, i, label, exemplar_ids=ids)


def parse(task: Task, reply: str, finish_reason: str | None, target: str) -> Parsed:
    """Every text of a reply, with the class that stands behind it where it is one of the task's."""
    names = {task.prompt_name(label).casefold(): label for label in task.labels}
    names |= {label.casefold(): label for label in task.labels}
    kind = re.compile(rf"^{re.escape(task.text_kind)}\s*:\s*", re.IGNORECASE)
    found = []
    read = read_reply(reply, finish_reason=finish_reason)
    for line in read.texts:
        line = kind.sub("", line)
        said = _LABEL.search(line)
        text = clean_line(line[: said.start()] if said else line)
        label = names.get(said[1].strip(" '\"").casefold(), target) if said else target
        if sum(character.isalpha() for character in text) >= 2:
            found.append(Written(text, label))
    return Parsed(found, read.dropped)
