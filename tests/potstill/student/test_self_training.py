"""Pseudo-labels."""

from __future__ import annotations

import numpy as np

from potstill.student.arms import TrainingRow
from potstill.student.self_training import pseudo_label


def test_the_surer_half_of_each_class_is_used() -> None:
    seed = TrainingRow("a seed", (0.0, 1.0), 5.0)
    rows = [seed, *(TrainingRow(f"text {number}", (0.5, 0.5)) for number in range(5))]
    opinion = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9], [0.4, 0.6]])
    found = pseudo_label(rows, opinion)
    assert found[0] is seed, "a labelled row keeps its label, whatever the student makes of it"
    assert [(row.text, row.label_probs) for row in found[1:]] == [
        ("text 1", (1.0, 0.0)),
        ("text 2", (1.0, 0.0)),
        ("text 3", (0.0, 1.0)),
    ]
