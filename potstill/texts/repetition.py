"""How much a set of texts repeats itself, its seeds or the test split, counted on words.

distinct-n (Li et al., NAACL 2016) and self-BLEU (Zhu et al., SIGIR 2018) stand beside the measures on embeddings
(``diversity``): those see paraphrases, these see phrases. ``docs/measures.md`` has the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potstill import draws
from potstill.rows import Example
from potstill.texts import filters

SAMPLE = 100  # texts of a class or set that self-BLEU is taken over: 10,000 comparisons


@dataclass(frozen=True, slots=True)
class Repetition:
    """Counts and shares of one set of ``texts``.

    ``distinct``: share of n-grams that are different, for n = 1, 2, 3. ``self_bleu``: 0 to 1, of a sample; lower is
    more diverse; ``None`` for fewer than two texts. The four counts are of texts, each under the first that is true
    of it: copies of a seed, texts near one of the test split (leakage), duplicates, near duplicates of an earlier text.
    """

    texts: int
    distinct: tuple[float, float, float]
    self_bleu: float | None
    copies_of_seeds: int
    near_test: int
    duplicates: int
    near_duplicates: int


def measure(
    texts: Sequence[str], seed_texts: Sequence[str], test_texts: Sequence[str], seed: int = 0, near: float = 0.75
) -> Repetition:
    """All of it. ``seed`` draws self-BLEU's sample; ``near``: Jaccard index of character 4-grams (``filters``)."""
    rows = [Example(str(i), text, "") for i, text in enumerate(texts)]
    reasons = [row.dropped_because for row in filters.drop(rows, seed_texts, test_texts, near, min_words=0)]
    return Repetition(
        len(texts),
        (distinct(texts, 1), distinct(texts, 2), distinct(texts, 3)),
        self_bleu(texts, seed) if len(texts) > 1 else None,
        reasons.count(filters.COPY_OF_SEED),
        reasons.count(filters.NEAR_TEST),
        reasons.count(filters.DUPLICATE),
        reasons.count(filters.NEAR_DUPLICATE),
    )


def distinct(texts: Sequence[str], n: int) -> float:
    """Different word n-grams over all word n-grams of the set, 0 to 1; 0 where no text has ``n`` words.

    It falls as a set grows, whatever the texts: compare sets of like size.
    """
    different, count = set(), 0
    for text in texts:
        words = filters.normalise(text).split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        different.update(grams)
        count += len(grams)
    return len(different) / count if count else 0.0


def self_bleu(texts: Sequence[str], seed: int = 0, sample: int = SAMPLE) -> float:
    """Mean BLEU-4 of a text with the other texts as its references, 0 to 1, over a drawn sample of ``sample`` texts.

    ``sacrebleu`` computes it (exponential smoothing, effective order, its 13a tokeniser, lower case). Raises
    ``ValueError`` for fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError("self-BLEU needs two texts or more")
    from sacrebleu.metrics import BLEU

    drawn = draws.sample(texts, sample, seed, "self-bleu")
    bleu = BLEU(lowercase=True, effective_order=True)
    scores = [bleu.sentence_score(text, [*drawn[:i], *drawn[i + 1 :]]).score for i, text in enumerate(drawn)]
    return float(sum(scores)) / len(scores) / 100.0
