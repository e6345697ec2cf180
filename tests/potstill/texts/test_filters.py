import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.rows import Example
from potstill.texts import filters
from potstill.texts.filters import (
    COPY_OF_SEED,
    DUPLICATE,
    NEAR_DUPLICATE,
    NEAR_TEST,
    TOO_SHORT,
    character_grams,
    count_words,
    drop,
    nearest_jaccard,
    normalise,
)


def examples(*texts: str) -> list[Example]:
    return [Example(str(number), text, "a") for number, text in enumerate(texts)]


def reasons(rows: list[Example]) -> list[str | None]:
    assert all(row.kept == (row.dropped_because is None) for row in rows)
    return [row.dropped_because for row in rows]


def test_each_reason_is_named():
    rows = drop(
        examples(
            "The parcel never came to my house",
            "the parcel never came to my house!!",
            "The parcel never came to my houses",
            "Where can I read my latest bill?",
            "I'd like to talk to somebody about the invoice",
            "bill",
            "My screen stays black after the update",
        ),
        seed_texts=["Where can I read my latest bill"],
        test_texts=["I would like to talk to somebody about the invoice"],
    )
    assert reasons(rows) == [None, DUPLICATE, NEAR_DUPLICATE, COPY_OF_SEED, NEAR_TEST, TOO_SHORT, None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thanks", 1),
        ("my parcel", 2),
        ("我的包裹什么时候到", 4),
        ("パスワードを忘れました", 5),
        ("ฉันลืมรหัสผ่าน", 7),
        ("包", 1),
    ],
)
def test_scripts_without_spaces_are_not_one_word(text, words):
    assert count_words(normalise(text)) == pytest.approx(words, abs=2 if words > 2 else 0)


def test_dropped_texts_do_not_drop_others():
    rows = drop(examples("my parcel is late today", "my parcel is late today!"), [], ["my parcel is late today"])
    assert reasons(rows) == [NEAR_TEST, NEAR_TEST]


def test_an_earlier_reason_stays():
    first = Example("0", "one two three four", "a", kept=False, dropped_because="low evidence")
    assert reasons(drop([first], [], [])) == ["low evidence"]


def test_nothing_to_do():
    assert drop([], ["a b"], ["c d"]) == []


TEXTS = st.lists(st.text("abc ", min_size=0, max_size=24), min_size=1, max_size=12)


def grams(text: str) -> set[str]:
    words = [f" {word} " for word in text.split()]
    return {word[i : i + 4] for word in words for i in range(max(1, len(word) - 3))}


@given(TEXTS, TEXTS)
def test_jaccard_equals_its_definition(left, right):
    left, right = [normalise(text) for text in left], [normalise(text) for text in right]
    fast = nearest_jaccard(*character_grams(left, right))
    for text, value in zip(left, fast, strict=True):
        a = grams(text)
        slow = max((len(a & grams(b)) / len(a | grams(b)) if a | grams(b) else 0.0) for b in right)
        assert np.isclose(value, slow, atol=1e-6)


@given(TEXTS)
def test_kept_texts_are_not_near_duplicates(texts):
    stay = [row for row in drop(examples(*texts), [], [], near=0.6) if row.kept]
    for number, row in enumerate(stay):
        for other in stay[:number]:
            a, b = grams(normalise(row.text)), grams(normalise(other.text))
            assert len(a & b) / len(a | b) < 0.6


def greedy(texts, near):
    """Kept texts by definition: each one that is not near an earlier kept text."""
    stay = []
    for number, text in enumerate(texts):
        if all(len(text & texts[other]) / len(text | texts[other]) < near for other in stay):
            stay.append(number)
    return stay


@given(st.lists(st.text("ab ", min_size=8, max_size=20), min_size=1, max_size=24), st.integers(1, 7))
def test_the_block_size_does_not_change_the_result(texts, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "_BLOCK", block)
        plain = [text for text in dict.fromkeys(map(normalise, texts)) if count_words(text) >= 2]
        rows = drop(examples(*plain), [], [], near=0.6)
        assert [number for number, row in enumerate(rows) if row.kept] == greedy(list(map(grams, plain)), 0.6)
        fast = nearest_jaccard(*character_grams(plain, plain[::2]))
        assert (fast[::2] == 1).all()


def test_memory_is_bounded_by_a_block(monkeypatch):
    """Doubling the texts does not quadruple memory, though most pairs share words."""
    monkeypatch.setattr(filters, "_BLOCK", 128)
    words = ["the", "parcel", "never", "came", "house", "please", "letter", "invoice", "again", "tomorrow"]
    draws = np.random.default_rng(0)

    def peak(count):
        left, right = character_grams(*([" ".join(draws.choice(words, 6)) for _ in range(count)] for _ in range(2)))
        tracemalloc.start()
        try:
            nearest_jaccard(left, right)
            filters._near_duplicates(left, np.arange(count), 0.99)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(1024) < 2.5 * peak(512)
    assert peak(1024) < 1024 * 128 * 12, "no strip of all texts against a block of them"
