"""A say for the student of the seeds alone, in the distilled student's labels and in its weights.

The seeds are the only real texts there are. What was learnt from them knows how real texts look, which the
teacher's texts don't always show: generated spam looks like any unruly text, and a student of it calls every
unruly message spam, though it *ranks* messages no worse than before. Two things mend that:

- labels: the teacher's distribution over a text's classes times that of the seeds-only student (a product of
  experts; two views that label for each other are co-training, Blum & Mitchell, COLT 1998);
- weights: the exported student is the weighted mean of the distilled one and the seeds-only one, which start
  from the same encoder (WiSE-FT: Wortsman et al., CVPR 2022, section 3).

How much say: as much as so few texts can have taught (two seeds tell two classes apart far better than six),
and only as far as it agrees, beyond chance, with what is known of the generated texts: the class that each was
written for and the one that the teacher took it for. A seeds-only student of SUBJ that was worse than a coin on
real sentences agreed at 0.3, those of SMS spam, which were good, at 0.4 to 0.75.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potstill.config.student import StudentConfig
from potstill.measures.kappa import kappa

FLOOR = 0.02
"""The least probability that counts: a student of a few texts is too sure of itself to rule a class out."""
_LARGEST_BLEND = 0.4
_AGREEMENT = (0.35, 0.5)  # up to the first the opinion counts for nothing, from the second on in full


@dataclass(frozen=True, slots=True)
class AnchorWeight:
    """``opinion``: exponent of the seeds-only student's probabilities, 0 to 1; ``blend``: share of its weights
    in the exported student; ``agreement``: beyond chance (``agreement``), ``None`` where the teacher was asked nothing."""

    opinion: float = 0.0
    blend: float = 0.0
    agreement: float | None = None


def wanted(student: StudentConfig) -> bool:
    """Whether the seeds-only student may have any say, so that it has to be trained."""
    return student.second_opinion != 0 or student.blend != 0


def choose_say(
    student: StudentConfig, n_seeds: int, choices: NDArray[np.int64], others: NDArray[np.float64]
) -> AnchorWeight:
    """As configured; auto: in full from as many seeds a class as there are classes and an agreement of 0.5, with
    fewer seeds by the square of that ratio, and nothing below an agreement of 0.35.

    ``choices`` [texts]: the classes that the seeds-only student takes texts for; ``others`` [texts, classes]: what
    else is known of them. All texts that the teacher was asked about belong here: on those that selection kept
    everybody agrees. The constants were found on training-side rows of several tasks (``docs/method.md``).
    """
    n_classes = others.shape[1]
    agreed = kappa(choices, others) if len(choices) else None
    taught = min(1.0, n_seeds / max(n_classes, 1) ** 2) ** 2
    low, high = _AGREEMENT
    # Nobody vouches for it where the teacher was asked nothing.
    standing = taught * float(np.clip(((agreed or 0.0) - low) / (high - low), 0.0, 1.0))
    return AnchorWeight(
        standing if student.second_opinion == "auto" else student.second_opinion,
        _LARGEST_BLEND * standing if student.blend == "auto" else student.blend,
        agreed,
    )


def in_words(say: Mapping[str, float | None]) -> str:
    """The fields of a ``AnchorWeight`` for a person; nothing where there is none."""
    if not say:
        return ""
    kappa = say["agreement"]
    agreement = "the teacher was asked nothing" if kappa is None else f"agrees with the others at kappa {kappa:.2f}"
    return (
        f"second opinion of the seeds-only student: weight {say['opinion']:.2f}, blend {say['blend']:.2f} ({agreement})"
    )


def refine(probs: NDArray[np.float64], opinion: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """``probs`` times ``opinion ** weight``, normalised; both [rows, classes]. What is certain stays so."""
    product = probs * np.maximum(opinion, FLOOR) ** weight
    refined: NDArray[np.float64] = product / product.sum(axis=1, keepdims=True)
    return refined
