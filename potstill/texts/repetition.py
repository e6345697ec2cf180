"""Repetition of words in a set of texts, and copies of its seeds and of the test split.

distinct-n (Li et al., NAACL 2016) and self-BLEU (Zhu et al., SIGIR 2018) detect repeated phrases, while the measures on
embeddings (``diversity``) detect paraphrases. ``docs/measures.md`` has the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potstill import draws
from potstill.rows import Example
from potstill.texts import filters

SAMPLE = 100  # texts sampled for self-BLEU: 10,000 comparisons


@dataclass(frozen=True, slots=True)
class Repetition:
    """Repetition in a set of ``texts``.

    ``distinct``: share of distinct n-grams, for n = 1, 2, 3. ``self_bleu``: 0 to 1, on a sample, lower is more diverse;
    None for fewer than two texts. The four counts are numbers of texts, each counted under the first that applies:
    copies of a seed, texts near the test split (leakage), duplicates, near duplicates of an earlier text.
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
    """All measures. ``seed`` draws self-BLEU's sample; ``near``: Jaccard threshold on character 4-grams (``filters``)."""
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
    """Distinct over all word n-grams of the set, 0 to 1; 0 if no text has ``n`` words.

    It decreases with the size of the set, so compare only sets of similar size.
    """
    different, count = set(), 0
    for text in texts:
        words = filters.normalise(text).split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        different.update(grams)
        count += len(grams)
    return len(different) / count if count else 0.0


def self_bleu(texts: Sequence[str], seed: int = 0, sample: int = SAMPLE) -> float:
    """Mean BLEU-4 of each text with the others as references, 0 to 1, over ``sample`` randomly drawn texts.

    Computed by ``sacrebleu`` (exponential smoothing, effective order, 13a tokeniser, lower case). Raises ``ValueError``
    for fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError("self-BLEU needs at least two texts")
    from sacrebleu.metrics import BLEU

    drawn = draws.sample(texts, sample, seed, "self-bleu")
    bleu = BLEU(lowercase=True, effective_order=True)
    scores = [bleu.sentence_score(text, [*drawn[:i], *drawn[i + 1 :]]).score for i, text in enumerate(drawn)]
    return float(sum(scores)) / len(scores) / 100.0
