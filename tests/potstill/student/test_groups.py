"""Groups for contrastive training."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.student.groups import draw_groups

CLASSES = st.lists(st.integers(0, 20), min_size=2, max_size=60).filter(lambda classes: len(set(classes)) > 1)


@given(CLASSES, st.integers(1, 20), st.integers(0, 5))
def test_every_text_of_a_group_has_another_of_its_class(classes: list[int], count: int, seed: int) -> None:
    of = np.array(classes)
    groups = draw_groups(classes, count, seed)
    assert len(groups) == count
    for group in groups:
        found = Counter(of[group].tolist())
        assert len(found) == min(12, len(set(classes)))
        for label, texts in found.items():
            assert texts == max(2, min(3, classes.count(label)))
        alone = {label for label in classes if classes.count(label) == 1}
        twice = [position for position, times in Counter(group.tolist()).items() if times > 1]
        assert set(of[twice].tolist()) == alone & set(found)
    for group, again in zip(groups, draw_groups(classes, count + 5, seed), strict=False):
        np.testing.assert_array_equal(group, again)


def test_one_class_has_no_groups() -> None:
    with pytest.raises(ValueError, match="two classes"):
        draw_groups([1, 1, 1], 4, 0)
