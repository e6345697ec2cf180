"""Which seeds a prompt shows."""

from __future__ import annotations

from collections.abc import Sequence

from potstill import draws
from potstill.task import LabelledText


def draw_exemplars(
    seeds: Sequence[LabelledText], label: str, shots: int, seed: int, *key: draws.Key
) -> list[LabelledText]:
    """``shots`` seeds of ``label`` in a random order; fewer shots are a prefix of more."""
    own = sorted((example for example in seeds if example.label == label), key=lambda example: example.example_id)
    return draws.sample(own, shots, seed, "exemplars", label, *key)
