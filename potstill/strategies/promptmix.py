"""PromptMix (Sahu et al. 2023): texts near class boundaries, by asking for a mixture of two classes.

The prompt shows a group of classes with description and seeds and asks for texts that belong alpha to one
class and 1 - alpha to a partner of its group; alpha = low + (high - low) * Beta(a, b), rounded to 0.05.
Departures from the released code: partner, group and alpha are drawn for every request instead of once
a cycle, and every text of a reply is used, not one in three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from potstill import draws
from potstill.config import Alpha, AugmentConfig
from potstill.prompts.contents import Draft, WritePrompt, card
from potstill.strategies.contexts import Context, draw_context, draw_exemplars
from potstill.task import LabelledText, Task


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """Drafts with index in [start, stop) of each label of ``counts``, in label order."""
    for label in task.labels:
        start, stop = counts.get(label, (0, 0))
        times: Counter[tuple[str, float]] = Counter()
        for i in range(stop):
            partner = draws.pick([other for other in task.labels if other != label], seed, "partner", label, i)
            alpha = draw_alpha(augment.alpha, seed, label, i)
            occurrence = times[partner, alpha]
            times[partner, alpha] += 1
            if i >= start:
                yield _draft(task, seeds, augment, seed, label, partner, alpha, occurrence)


def draw_alpha(alpha: Alpha, seed: int, label: str, i: int) -> float:
    """The mixup ratio of draw ``i``, a multiple of 0.05 in [low, high]."""
    raw = alpha.low + (alpha.high - alpha.low) * draws.generator(seed, "alpha", label, i).beta(*alpha.beta)
    return min(max(round(round(raw / 0.05) * 0.05, 2), alpha.low), alpha.high)


def _draft(
    task: Task,
    seeds: Sequence[LabelledText],
    augment: AugmentConfig,
    seed: int,
    label: str,
    partner: str,
    alpha: float,
    occurrence: int,
) -> Draft:
    # Keyed by what is asked, not by the index of the draw: see the package's docstring.
    key = (label, partner, alpha, occurrence)
    bystanders = draws.sample(
        [other for other in task.labels if other not in (label, partner)],
        augment.classes_per_prompt - 2,
        seed,
        "group",
        *key,
    )
    shown = [*bystanders, partner, label]
    exemplars = {name: draw_exemplars(seeds, name, augment.shots, seed, *key) for name in shown}
    context = draw_context(task, label, seed, *key) if augment.contexts else Context()
    # At alpha = 1 nothing is mixed, and the prompt doesn't speak of it.
    mixed = alpha < 1.0
    prompt = WritePrompt(
        task=task.description,
        text_kind=task.text_kind,
        source=task.source,
        cards=tuple(card(task, name, exemplars[name]) for name in shown),
        mix=task.prompt_name(partner) if mixed else None,
        alpha=alpha if mixed else None,
        style=context.style,
        length=context.length,
        topic=context.topic,
        count=augment.texts_per_reply,
    )
    ids = tuple(example.example_id for name in shown for example in exemplars[name])
    return Draft(prompt, occurrence, label, partner, alpha, ids)
