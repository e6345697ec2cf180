"""Where training texts come from. A strategy is one module (``contract.py``), registered here by name.

    counts = {"human": (0, 50), "location": (0, 50)}       # draws [start, stop) of each class
    drafts = STRATEGIES[name].plan(task, seeds, augment, seed, counts)

A later round asks for the next range; the plan for 50 draws is a prefix of the plan for 100. A PromptMix prompt depends
on (class, partner, alpha, occurrence), not on the index of the draw, so trials of a search share requests wherever
their prompts are equal. Drafts are made lazily: a plan of a million holds one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from potstill.strategies import collected, eda, few_shot, gpt3mix, promptmix, sahu2022, wordnet
from potstill.strategies.contract import Strategy, texts_wanted

__all__ = ["STRATEGIES", "Strategy", "next_counts", "texts_wanted"]

STRATEGIES: dict[str, Strategy] = {
    "promptmix": Strategy("texts near class boundaries (Sahu et al. 2023)", promptmix.plan),
    "few_shot": Strategy("a context and seeds of the class (Li et al. 2023)", few_shot.plan),
    "zero_shot": Strategy("a context and the class's description (Li et al. 2023)", few_shot.plan_zero_shot),
    "sahu2022": Strategy("a list of the class's seeds to continue (Sahu et al. 2022)", sahu2022.plan),
    "gpt3mix": Strategy("labelled texts of several classes; writes text and class", gpt3mix.plan, gpt3mix.parse),
    "eda": Strategy(
        "the seeds with words replaced, inserted, swapped or deleted",
        collect=eda.collect,
        alike=True,
        problems=wordnet.problems,
    ),
    "real": Strategy("real training texts with their labels", collect=collected.collect_real, alike=True),
    "annotate": Strategy("your own unlabelled texts", collect=collected.collect_unlabelled, unlabelled=True),
}
"""By name in ``augment.strategy``; a test keeps the config's list of names the same."""


def next_counts(
    labels: Sequence[str], wanted: int, texts: Mapping[str, int], drawn: Mapping[str, int], texts_per_reply: float
) -> dict[str, tuple[int, int]]:
    """The draws to ask for next, for each label with fewer than ``wanted`` texts.

    ``texts``: usable texts so far; ``drawn``: requests planned so far. The first round expects ``texts_per_reply`` texts
    per request, later ones the yield so far (at least one text in ten replies).
    """
    counts: dict[str, tuple[int, int]] = {}
    for label in labels:
        have, asked = texts.get(label, 0), drawn.get(label, 0)
        if have >= wanted:
            continue
        expected = max(have / asked, 0.1) if asked else texts_per_reply
        counts[label] = (asked, asked + max(1, math.ceil((wanted - have) / expected)))
    return counts
