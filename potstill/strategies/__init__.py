"""Where training texts come from. A strategy is one module (``contract.py`` says what it holds); naming it here registers it.

    drafts = plan(task, seeds, augment, seed, counts={"human": (0, 50), "location": (0, 50)})

For every label the draws with index in [start, stop): a later round asks for the next range, and the plan
for 50 draws is a prefix of the plan for 100. What a draw asks depends on (class, partner, alpha,
occurrence), not on its index, so trials of a search share requests wherever their prompts are the same.
A draft is made when the next one is asked for: a plan of a million holds one of them at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from potstill.config import AugmentConfig
from potstill.errors import InputError, Problem
from potstill.prompts.contents import Draft
from potstill.strategies import annotate, eda, few_shot, gpt3mix, promptmix, real, sahu2022, wordnet
from potstill.strategies.contract import Strategy, Written, texts_wanted
from potstill.task import LabelledText, Task

__all__ = ["STRATEGIES", "Strategy", "Written", "find", "next_counts", "plan", "texts_wanted"]

STRATEGIES: dict[str, Strategy] = {
    "promptmix": Strategy("texts near class boundaries (Sahu et al. 2023)", promptmix.plan),
    "few_shot": Strategy("a context and seeds of the class (Li et al. 2023)", few_shot.plan),
    "zero_shot": Strategy("a context and the class's description (Li et al. 2023)", few_shot.plan_zero_shot),
    "sahu2022": Strategy("a list of the class's seeds to go on with (Sahu et al. 2022)", sahu2022.plan),
    "gpt3mix": Strategy("labelled texts of several classes; writes text and class", gpt3mix.plan, gpt3mix.parse),
    "eda": Strategy(
        "the seeds with words replaced, inserted, swapped, deleted",
        collect=eda.collect,
        alike=True,
        problems=wordnet.problems,
    ),
    "real": Strategy("real training texts with their labels", collect=real.collect, alike=True),
    "annotate": Strategy("your own unlabelled texts", collect=annotate.collect, unlabelled=True),
}
"""By their name in ``augment.strategy``. ``tests/potstill/strategies/test_strategies.py`` holds the config to the same names."""


def find(name: str) -> Strategy:
    """The strategy of that name. Raises ``InputError`` with the known ones."""
    if name not in STRATEGIES:
        raise InputError(
            [Problem("augment.strategy", f"{name!r} is not known; known: {', '.join(sorted(STRATEGIES))}")]
        )
    return STRATEGIES[name]


def plan(
    task: Task, seeds: Sequence[LabelledText], augment: AugmentConfig, seed: int, counts: Mapping[str, tuple[int, int]]
) -> Iterator[Draft]:
    """The drafts of the configured strategy. Raises ``InputError`` for a strategy nobody registered."""
    return find(augment.strategy).plan(task, seeds, augment, seed, counts)


def next_counts(
    labels: Sequence[str], wanted: int, texts: Mapping[str, int], drawn: Mapping[str, int], texts_per_reply: float
) -> dict[str, tuple[int, int]]:
    """The draws to ask for next, per label that is still short of ``wanted`` texts; empty when none is.

    ``texts``: usable texts so far, ``drawn``: requests planned so far. The first round believes
    ``texts_per_reply``, later ones the yield seen for the label (at least one text in ten replies).
    """
    counts: dict[str, tuple[int, int]] = {}
    for label in labels:
        have, asked = texts.get(label, 0), drawn.get(label, 0)
        if have >= wanted:
            continue
        expected = max(have / asked, 0.1) if asked else texts_per_reply
        counts[label] = (asked, asked + max(1, math.ceil((wanted - have) / expected)))
    return counts
