"""Filters over a stage's texts: duplicates, copies of the seeds, texts near the test split.

A filter never removes a row; it sets ``kept=False`` and the reason, so the report can count.
Likeness is the Jaccard index of the sets of character 4-grams, computed exactly by blocked sparse
products: 20,000 texts against each other take seconds, memory is bounded by the block.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from potstill.rows import Example

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"
COPY_OF_SEED = "copy of a seed"
NEAR_TEST = "near a test text"
TOO_SHORT = "too short"

_BLOCK = 2048
_WORD = re.compile(r"\w+")
# Thai, Lao, Burmese, Khmer, kana, CJK: written without spaces, so that a sentence is one "word".
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_UNSPACED_LETTERS = 2  # of them count as a word


def normalise(text: str) -> str:
    """``text`` for comparison: compatibility-composed, case-folded, words only."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def count_words(text: str) -> int:
    """Words of a normalised text; where a script puts no spaces, two letters count as one."""
    return sum(max(1, len(_UNSPACED.findall(word)) // _UNSPACED_LETTERS) for word in text.split())


def drop(
    examples: Sequence[Example],
    seed_texts: Sequence[str],
    test_texts: Sequence[str],
    near: float = 0.75,
    min_words: int = 2,
    alike: bool = False,
) -> list[Example]:
    """Mark what must not reach the student; of several alike texts the first stays.

    ``near`` is the Jaccard index from which two texts count as the same. Test texts serve only to drop
    rows that leak them; labels of the test split are never looked at. ``alike``: texts near a seed or near each other
    stay, only the same words a second time go.
    """
    plain = [normalise(example.text) for example in examples]
    reasons: list[str | None] = [example.dropped_because for example in examples]

    def mark(indices: Iterable[int], reason: str) -> None:
        for index in indices:
            reasons[index] = reasons[index] or reason

    mark((index for index, text in enumerate(plain) if count_words(text) < min_words), TOO_SHORT)
    seeds, tests = [normalise(text) for text in seed_texts], [normalise(text) for text in test_texts]
    grams, seed_grams, test_grams = character_grams(plain, seeds, tests)
    if alike:
        known = set(seeds)
        mark([index for index, text in enumerate(plain) if text in known], COPY_OF_SEED)
    else:
        mark(np.flatnonzero(nearest_jaccard(grams, seed_grams) >= near), COPY_OF_SEED)
    mark(np.flatnonzero(nearest_jaccard(grams, test_grams) >= near), NEAR_TEST)
    first: dict[str, int] = {}
    mark([i for i, text in enumerate(plain) if reasons[i] is None and first.setdefault(text, i) != i], DUPLICATE)
    if not alike:
        standing = np.flatnonzero([reason is None for reason in reasons])
        mark(_near_duplicates(grams, standing, near), NEAR_DUPLICATE)
    return [
        replace(example, kept=example.kept and reason is None, dropped_because=reason)
        for example, reason in zip(examples, reasons, strict=True)
    ]


def character_grams(*groups: Sequence[str]) -> list[sparse.csr_matrix]:
    """The sets of character 4-grams of each group of texts as 0/1 matrices over one common vocabulary."""
    vectorizer = CountVectorizer(analyzer="char_wb", ngram_range=(4, 4), binary=True, dtype=np.float32)
    if not any(text.strip() for texts in groups for text in texts):
        return [sparse.csr_matrix((len(texts), 1), dtype=np.float32) for texts in groups]
    vectorizer.fit(text for texts in groups for text in texts)
    return [
        vectorizer.transform(texts) if texts else sparse.csr_matrix((0, len(vectorizer.vocabulary_)), dtype=np.float32)
        for texts in groups
    ]


def nearest_jaccard(left: sparse.csr_matrix, right: sparse.csr_matrix) -> np.ndarray:
    """For each row of ``left`` the highest Jaccard index with any row of ``right``, shape (n_left,)."""
    best = np.zeros(left.shape[0], dtype=np.float32)
    if right.shape[0]:
        for start, jaccard in _blocks(left, right):
            best[start : start + jaccard.shape[0]] = jaccard.max(axis=1).toarray().ravel()
    return best


def _blocks(left: sparse.csr_matrix, right: sparse.csr_matrix) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """Sparse blocks of the Jaccard matrix with the number of their first row."""
    transposed = right.T.tocsc()
    left_sizes, right_sizes = np.diff(left.indptr), np.diff(right.indptr)
    for start in range(0, left.shape[0], _BLOCK):
        shared = (left[start : start + _BLOCK] @ transposed).tocoo()
        union = left_sizes[start + shared.row] + right_sizes[shared.col] - shared.data
        yield start, sparse.csr_matrix((shared.data / union, (shared.row, shared.col)), shape=shared.shape)


def _near_duplicates(grams: sparse.csr_matrix, standing: np.ndarray, near: float) -> list[int]:
    """Of the rows ``standing`` those that are near an earlier one that stays."""
    if not len(standing):
        return []
    dropped = []
    stays = np.ones(len(standing), dtype=bool)
    chosen = grams[standing]
    for start, jaccard in _blocks(chosen, chosen):
        for offset in range(jaccard.shape[0]):
            row, cut = start + offset, slice(jaccard.indptr[offset], jaccard.indptr[offset + 1])
            columns, values = jaccard.indices[cut], jaccard.data[cut]
            if stays[columns[(values >= near) & (columns < row)]].any():
                stays[row] = False
                dropped.append(int(standing[row]))
    return dropped
