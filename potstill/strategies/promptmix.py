"""PromptMix (Sahu et al. 2023): texts near class boundaries, from prompts for mixtures of two classes.

The prompt shows a group of classes with descriptions and seeds and asks for texts that belong alpha to one class and
1 - alpha to a partner of its group; alpha = low + (high - low) * Beta(a, b), rounded to 0.05. Departures from the
released code: partner, group and alpha are drawn per request instead of per cycle, and every text of a reply is used,
not one in three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from potstill import draws
from potstill.config import Alpha, AugmentConfig
from potstill.prompts.contents import Draft
from potstill.strategies.contexts import draw_context, draw_exemplars, exemplar_ids, write_prompt
from potstill.task import LabelledText, Task


class _Draw(NamedTuple):
    """What is asked for; with the data seed it decides the whole prompt."""

    label: str
    partner: str
    alpha: float
    occurrence: int


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """The strategy's drafts (``contract.py``)."""
    for label in task.labels:
        start, stop = counts.get(label, (0, 0))
        times: Counter[tuple[str, float]] = Counter()
        for i in range(stop):
            partner = draws.pick([other for other in task.labels if other != label], seed, "partner", label, i)
            alpha = draw_alpha(augment.alpha, seed, label, i)
            occurrence = times[partner, alpha]
            times[partner, alpha] += 1
            if i >= start:
                yield _draft(task, seeds, augment, seed, _Draw(label, partner, alpha, occurrence))


def draw_alpha(alpha: Alpha, seed: int, label: str, i: int) -> float:
    """The mixup ratio of draw ``i``, a multiple of 0.05 in [low, high]."""
    raw = alpha.low + (alpha.high - alpha.low) * draws.generator(seed, "alpha", label, i).beta(*alpha.beta)
    return min(max(round(round(raw / 0.05) * 0.05, 2), alpha.low), alpha.high)


def _draft(task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, draw: _Draw) -> Draft:
    # Random draws are keyed by ``draw``, not by its index, so that other plans share its request.
    label, partner, alpha, occurrence = draw
    others = [other for other in task.labels if other not in (label, partner)]
    group = draws.sample(others, augment.classes_per_prompt - 2, seed, "group", *draw)
    exemplars = {name: draw_exemplars(seeds, name, augment.shots, seed, *draw) for name in (*group, partner, label)}
    context = draw_context(task, augment, label, seed, *draw)
    # At alpha = 1 nothing is mixed, so the prompt does not mention it.
    mixture = {"mix": task.prompt_name(partner), "alpha": alpha} if alpha < 1.0 else {}
    prompt = write_prompt(task, augment, exemplars, context=context, **mixture)
    return Draft(prompt, occurrence, label, partner, alpha, exemplar_ids(exemplars))
