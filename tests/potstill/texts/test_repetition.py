"""distinct-n and self-BLEU against hand-worked cases; copies, duplicates and leaks counted once each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.texts.repetition import distinct, measure, self_bleu


def test_distinct_by_hand():
    texts = ["the cat sat", "the cat ran"]
    assert distinct(texts, 1) == pytest.approx(4 / 6)  # the, cat, sat, ran of six words
    assert distinct(texts, 2) == pytest.approx(3 / 4)  # "the cat" occurs twice
    assert distinct(texts, 3) == 1.0
    assert distinct(texts, 4) == 0.0


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=8), st.integers(1, 3))
def test_repeating_every_text_halves_distinct(texts, n):
    assert distinct(texts + texts, n) == pytest.approx(distinct(texts, n) / 2)


def test_self_bleu_between_nothing_and_everything_shared():
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    different = self_bleu(["one two three four five", "alpha beta gamma delta epsilon"])
    alike = self_bleu(["one two three four five", "one two three four six"])
    assert different < 0.15 < alike < 1.0
    with pytest.raises(ValueError, match="two texts"):
        self_bleu(["alone"])


def test_self_bleu_is_a_drawn_sample():
    texts = [f"text number {i} of a longer list {i * i}" for i in range(60)]
    assert self_bleu(texts, 1, sample=20) == self_bleu(texts, 1, sample=20)
    assert self_bleu(texts, 1, sample=20) != self_bleu(texts, 2, sample=20)


def test_copies_duplicates_and_leaks_are_counted_once_each():
    texts = [
        "my laptop does not start any more",
        "My laptop does not start any more!",  # duplicate
        "my laptop does not start anymore",  # near duplicate
        "please reset the password of my account",  # copy of a seed
        "the printer on floor two is out of paper",  # of the test split
        "who has the key to the server room",
    ]
    found = measure(texts, ["Please reset the password of my account."], ["The printer on floor two is out of paper"])
    counts = (found.copies_of_seeds, found.near_test, found.duplicates, found.near_duplicates)
    assert (found.texts, counts) == (6, (1, 1, 1, 1))
    assert 0.0 < found.distinct[0] < found.distinct[2] <= 1.0
    assert measure(["alone here"], [], []).self_bleu is None
