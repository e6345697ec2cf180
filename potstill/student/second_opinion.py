"""The second opinion of the start student (the anchor), in the distilled student's labels and in its weights.

The seeds are the only real texts with labels. A student that knows only them and the class descriptions knows what real texts look like,
which generated texts don't always show: generated spam looks like any unruly text, so a student trained on it calls every unruly message
spam, although it *ranks* messages no worse than before. Two things correct that:

- labels: the teacher's distribution over a text's classes times that of the start student (a product of experts; two views that label
  for each other are co-training, Blum & Mitchell, COLT 1998);
- weights: the exported student is the weighted mean of the distilled one and the start student, whose encoder it started from
  (WiSE-FT: Wortsman et al., CVPR 2022, section 3).

The anchor's weight grows with its texts per class and is capped by its kappa with the other labels of the generated texts: the class that
each was written for and the class that the teacher assigned. In a study the anchor is the student of the seeds alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potstill.config.student import StudentConfig
from potstill.measures.kappa import kappa

FLOOR = 0.02
"""Lower bound of the anchor's probabilities: a student trained on a few texts is too overconfident to rule a class out."""
_LARGEST_BLEND = 0.4
_AGREEMENT = (0.35, 0.5)  # no weight up to the first, full weight from the second


@dataclass(frozen=True, slots=True)
class AnchorWeight:
    """``opinion``: exponent of the start student's probabilities, 0 to 1; ``blend``: share of its weights in the
    exported student; ``agreement``: its kappa with the other labels, None if the teacher was not asked."""

    opinion: float = 0.0
    blend: float = 0.0
    agreement: float | None = None


def wanted(student: StudentConfig) -> bool:
    """Whether the start student may get any weight, so that it has to be trained."""
    return student.second_opinion != 0 or student.blend != 0


def choose_weight(
    student: StudentConfig, n_seeds: int, choices: NDArray[np.int64], others: NDArray[np.float64]
) -> AnchorWeight:
    """The anchor's weight, as configured. auto: full with as many seeds per class as there are classes and an agreement
    of 0.5; with fewer seeds it falls with the square of that ratio; zero below an agreement of 0.35.

    ``choices`` [texts]: the classes that the start student assigns; ``others`` [texts, classes]: the other labels
    of the texts. Pass all texts that the teacher was asked about: on those that selection kept, all labels agree. The
    constants were found on training-side rows of several tasks (``docs/method.md``).
    """
    n_classes = others.shape[1]
    agreed = kappa(choices, others) if len(choices) else None
    taught = min(1.0, n_seeds / max(n_classes, 1) ** 2) ** 2
    low, high = _AGREEMENT
    # Without the teacher's labels there is no agreement, so no weight.
    weight = taught * float(np.clip(((agreed or 0.0) - low) / (high - low), 0.0, 1.0))
    return AnchorWeight(
        weight if student.second_opinion == "auto" else student.second_opinion,
        _LARGEST_BLEND * weight if student.blend == "auto" else student.blend,
        agreed,
    )


def in_words(weight: Mapping[str, float | None]) -> str:
    """The fields of an ``AnchorWeight`` in words; empty without an anchor."""
    if not weight:
        return ""
    agreed = weight["agreement"]
    agreement = "the teacher was not asked" if agreed is None else f"agrees with the others at kappa {agreed:.2f}"
    shares = f"weight {weight['opinion']:.2f}, blend {weight['blend']:.2f}"
    return f"second opinion of the start student: {shares} ({agreement})"


def refine(probs: NDArray[np.float64], opinion: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """``probs`` times ``opinion ** weight``, normalised; both [rows, classes]. One-hot rows don't change."""
    product = probs * np.maximum(opinion, FLOOR) ** weight
    refined: NDArray[np.float64] = product / product.sum(axis=1, keepdims=True)
    return refined
