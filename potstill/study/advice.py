"""The recommendation of an assessment: go, go with relabelling, or label by hand."""

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

SIZES = (2, 4, 8, 16, 32)  # real texts per class on the learning curve
_RELIABLE, _STABLE = 0.9, 0.6  # accuracy on the seeds, alpha among votes: from here on a teacher needs no relabelling
_UNSTABLE = 0.2  # alpha among votes: below, answers depend on the phrasing
_WORTHWHILE = 0.02  # least gain in accuracy that justifies twice the texts


@dataclass(frozen=True, slots=True)
class Advice:
    """``say``: the recommendation; ``because``: the reasons, one sentence each."""

    say: str
    because: tuple[str, ...]


def advise(found: Diagnosis | None, seed_accuracy: float, seeds: int, classes: int, curve: dict[int, float]) -> Advice:
    """A recommendation by fixed rules, from the teacher's accuracy on the ``seeds`` and the stability of its votes.

    ``curve``: a classifier's accuracy by labelled real texts per class; empty without labelled texts.
    """
    chance = 1.0 / classes
    right = round(seed_accuracy * seeds)
    p_value = float(binomtest(right, seeds, chance, alternative="greater").pvalue) if seeds else 1.0
    alpha = found.alpha if found is not None else None
    because = [
        f"The teacher is right on {right} of {seeds} labelled examples (chance: {chance:.0%}; p = {p_value:.2g})."
    ]
    if alpha is not None:
        because.append(f"Its votes agree with alpha {alpha:.2f} (1: always, 0: as often as by chance).")
    elif found is not None:
        because.append("All its votes are for one class: it cannot tell the classes apart.")
    if found is None or alpha is None or seed_accuracy <= chance or alpha < _UNSTABLE:
        return Advice(
            "label by hand", (*because, "Its answers depend on the phrasing of the question.", by_hand(curve))
        )
    if p_value < 0.05 and seed_accuracy >= _RELIABLE and alpha >= _STABLE:
        return Advice("go", (*because, "It knows the classes, and its answers are stable."))
    if p_value >= 0.05:
        because.append("These examples are too few to prove that it knows the classes; label more to be sure.")
    because.append("Some of its texts will be of the wrong class: show it examples, and let it relabel its texts.")
    return Advice("go, with few-shot prompts and relabelling", tuple(because))


def by_hand(curve: dict[int, float]) -> str:
    """A sentence on how many texts to label."""
    if len(curve) < 2:
        return "How many texts to label can't be told without labelled texts; start with 16 per class and assess again."
    sizes = sorted(curve)
    enough = next((a for a, b in pairwise(sizes) if curve[b] - curve[a] < _WORTHWHILE), None)
    seen = ", ".join(f"{size} per class: {curve[size]:.2f}" for size in sizes)
    if enough is None:
        return f"Accuracy still rises at {sizes[-1]} labelled texts per class ({seen}): label more than that."
    return f"About {enough} labelled texts per class are enough; twice as many add less than {_WORTHWHILE} accuracy ({seen})."


def learning_curve(
    embeddings: NDArray[np.floating], labels: Sequence[str], order: Sequence[str], seed: int = 0
) -> dict[int, float]:
    """Accuracy on a held-out half, by labelled texts per class, of a logistic regression on frozen embeddings.

    Sizes for which a class has too few texts are left out.
    """
    shuffled = draws.shuffle(range(len(labels)), seed, "learning curve")
    test, train = shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]
    of_class = {label: [i for i in train if labels[i] == label] for label in order}
    curve = {}
    for size in SIZES:
        if min(map(len, of_class.values()), default=0) >= size and test:
            chosen = [i for own in of_class.values() for i in own[:size]]
            probs = fit_predict(embeddings[chosen], [labels[i] for i in chosen], embeddings[test], order)
            right = [order[column] == labels[i] for column, i in zip(probs.argmax(1), test, strict=True)]
            curve[size] = float(np.mean(right))
    return curve
