"""The second seeds-only baseline: logistic regression on frozen sentence embeddings of the seeds.

With only a few seeds per class it is often the stronger one: on TREC-6 with twelve texts, fine-tuning the whole encoder
gave accuracy 0.14-0.41, the regression about 0.3 with less variance between seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.rows import Prediction
from potstill.task import LabelledText

Floats = NDArray[np.floating]


def fit_predict(
    seeds: Floats, seed_labels: Sequence[str], texts: Floats, labels: Sequence[str], strength: float = 10.0
) -> NDArray[np.float64]:
    """Class probabilities ``[texts, classes]``, in the order of ``labels``.

    ``seeds`` ``[seeds, dim]`` and ``texts`` ``[texts, dim]`` are embeddings, scaled to unit length here. Class weights
    are balanced; ``strength`` is the inverse regularisation C. A class without seeds gets probability 0. Raises
    ``ValueError`` for seeds of fewer than two classes or a label not among ``labels``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    number = {label: i for i, label in enumerate(labels)}
    unknown = sorted(set(seed_labels) - set(labels))
    if unknown:
        raise ValueError(f"seed labels {', '.join(map(repr, unknown))} are not among the classes")
    truth = np.array([number[label] for label in seed_labels])
    if len(seeds) != len(truth) or len(set(truth.tolist())) < 2:
        raise ValueError("the regression needs one label per seed and seeds of at least two classes")
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    model.fit(normalize(seeds), truth)
    probs = np.zeros((len(texts), len(labels)))
    if len(texts):
        probs[:, model.classes_] = model.predict_proba(normalize(texts))
    return probs


def as_predictions(
    texts: Sequence[LabelledText], probs: NDArray[np.float64], labels: Sequence[str]
) -> list[Prediction]:
    """Probabilities ``[texts, classes]`` as prediction rows, to be scored like a student's."""
    best = probs.argmax(axis=1)
    return [
        Prediction(text.example_id, text.label, tuple(row.tolist()), labels[int(top)])
        for text, row, top in zip(texts, probs, best, strict=True)
    ]
