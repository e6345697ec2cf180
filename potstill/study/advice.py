"""What an assessment comes to, in plain words: go, go with relabelling, or label by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from potstill import draws
from potstill.measures.baselines import fit_predict
from potstill.study.assessment import Diagnosis

SIZES = (2, 4, 8, 16, 32)  # real texts a class on the learning curve
_KNOWS, _STABLE = 0.9, 0.6  # accuracy on the seeds; alpha among votes: from here on the teacher can be left alone
_SHAKY = 0.2  # alpha among votes: below, its answer is its phrasing's
_ENOUGH = 0.02  # accuracy that doubling the texts must bring to be worth it


@dataclass(frozen=True, slots=True)
class Advice:
    """``say``: go, go with few-shot and relabelling, or label by hand; ``because``: in sentences."""

    say: str
    because: tuple[str, ...]


def advise(found: Diagnosis | None, seed_accuracy: float, seeds: int, classes: int, curve: dict[int, float]) -> Advice:
    """Rules, not a model: they read the teacher's accuracy on the ``seeds`` and how steady its votes are.

    ``curve``: accuracy of a classifier on real texts, by their number a class; empty where none are labelled.
    """
    chance = 1.0 / classes
    right = round(seed_accuracy * seeds)
    p_value = float(binomtest(right, seeds, chance, alternative="greater").pvalue) if seeds else 1.0
    alpha = found.alpha if found is not None else None
    because = [
        f"The teacher is right on {right} of {seeds} labelled examples (chance: {chance:.0%}; p = {p_value:.2g})."
    ]
    if alpha is not None:
        because.append(f"Its votes agree with each other at alpha {alpha:.2f} (1: always, 0: as chance would).")
    elif found is not None:
        because.append("All its votes are for one class: it does not tell the classes apart.")
    if found is None or alpha is None or seed_accuracy <= chance or alpha < _SHAKY:
        return Advice("label by hand", (*because, "What it says hangs on how it is asked.", by_hand(curve)))
    if p_value < 0.05 and seed_accuracy >= _KNOWS and alpha >= _STABLE:
        return Advice("go", (*because, "It knows the classes and stays with its answer."))
    more = (
        ()
        if p_value < 0.05
        else ("So few examples don't prove that it knows the classes; label some more to be sure.",)
    )
    return Advice(
        "go, with few-shot prompts and relabelling",
        (
            *because,
            *more,
            "Its texts will be partly of the wrong class: show it examples, and let it label again what it wrote.",
        ),
    )


def by_hand(curve: dict[int, float]) -> str:
    """How many texts to label, in a sentence."""
    if len(curve) < 2:
        return "How many texts to label can't be told without labelled ones to learn from; begin with 16 a class and assess again."
    sizes = sorted(curve)
    enough = next((a for a, b in pairwise(sizes) if curve[b] - curve[a] < _ENOUGH), None)
    seen = ", ".join(f"{size} a class {curve[size]:.2f}" for size in sizes)
    if enough is None:
        return f"Accuracy still rises at {sizes[-1]} labelled texts a class ({seen}): label more than that."
    return f"About {enough} labelled texts a class are enough; twice as many add less than {_ENOUGH} accuracy ({seen})."


def learning_curve(
    embeddings: NDArray[np.floating], labels: Sequence[str], order: Sequence[str], seed: int = 0
) -> dict[int, float]:
    """Accuracy of a logistic regression on frozen embeddings, by labelled texts a class, on the half held out.

    Sizes for which not every class has texts are left out; so is everything where a class has fewer than four.
    """
    place = draws.shuffle(range(len(labels)), seed, "learning curve")
    test, train = place[: len(place) // 2], place[len(place) // 2 :]
    of_class = {label: [i for i in train if labels[i] == label] for label in order}
    curve = {}
    for size in SIZES:
        if min(map(len, of_class.values()), default=0) >= size and test:
            chosen = [i for own in of_class.values() for i in own[:size]]
            probs = fit_predict(embeddings[chosen], [labels[i] for i in chosen], embeddings[test], order)
            right = [order[column] == labels[i] for column, i in zip(probs.argmax(1), test, strict=True)]
            curve[size] = float(np.mean(right))
    return curve
