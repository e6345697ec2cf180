"""Filter a stage's texts: duplicates, copies of the seeds, texts near the test split.

A filter never removes a row. It sets ``kept=False`` and the reason, so that the report can count them.
Similarity is the exact Jaccard index of the sets of character 4-grams, computed by sparse matrix products. Most pairs
share some 4-gram, so pairs are computed in blocks (about 20 MB each) and only the similar ones are kept.
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

_BLOCK = 1024  # texts per side of a block
_WORD = re.compile(r"\w+")
# Thai, Lao, Burmese, Khmer, kana, CJK: written without spaces, so a sentence matches as one "word".
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_UNSPACED_LETTERS = 2  # per word


def normalise(text: str) -> str:
    """``text`` for comparison: NFKC-normalised, case-folded, words only."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def count_words(text: str) -> int:
    """Number of words in a normalised text; in scripts without spaces, two letters count as a word."""
    return sum(max(1, len(_UNSPACED.findall(word)) // _UNSPACED_LETTERS) for word in text.split())


def drop(
    examples: Sequence[Example],
    seed_texts: Sequence[str],
    test_texts: Sequence[str],
    near: float = 0.75,
    min_words: int = 2,
    alike: bool = False,
) -> list[Example]:
    """Mark texts that must not reach the student. Of several similar texts the first is kept.

    Two texts with a Jaccard index of ``near`` or more count as the same. Test texts are used only to drop rows that leak
    them; test labels are never used. ``alike``: keep texts similar to a seed or to each other, and drop only those with
    the same words.
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
    """The character 4-grams of each group of texts, as 0/1 matrices over one common vocabulary."""
    vectorizer = CountVectorizer(analyzer="char_wb", ngram_range=(4, 4), binary=True, dtype=np.float32)
    if not any(text.strip() for texts in groups for text in texts):
        return [sparse.csr_matrix((len(texts), 1), dtype=np.float32) for texts in groups]
    vectorizer.fit(text for texts in groups for text in texts)
    empty = sparse.csr_matrix((0, len(vectorizer.vocabulary_)), dtype=np.float32)
    return [vectorizer.transform(texts) if texts else empty for texts in groups]


def nearest_jaccard(left: sparse.csr_matrix, right: sparse.csr_matrix) -> np.ndarray:
    """The highest Jaccard index of each row of ``left`` with any row of ``right``, (n_left,)."""
    best = np.zeros(left.shape[0], dtype=np.float32)
    for rows, _, jaccard in _blocks(left, right):
        np.maximum.at(best, rows, jaccard)
    return best


def _blocks(
    left: sparse.csr_matrix, right: sparse.csr_matrix, lower: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of rows that share a 4-gram, by block: their indices in ``left`` and ``right`` and their Jaccard indices.

    Blocks of ``left`` come in order, each with all blocks of ``right``; ``lower``: only with blocks up to its own index.
    """
    starts = range(0, right.shape[0], _BLOCK)
    transposed = [right[start : start + _BLOCK].T.tocsc() for start in starts]
    left_sizes, right_sizes = np.diff(left.indptr), np.diff(right.indptr)
    for top in range(0, left.shape[0], _BLOCK):
        some = left[top : top + _BLOCK]
        for start, block in zip(starts, transposed, strict=True):
            if lower and start > top:
                break
            shared = (some @ block).tocoo()
            rows, columns = top + shared.row, start + shared.col
            yield rows, columns, shared.data / (left_sizes[rows] + right_sizes[columns] - shared.data)


def _near_duplicates(grams: sparse.csr_matrix, standing: np.ndarray, near: float) -> list[int]:
    """The rows among ``standing`` that are near an earlier kept row."""
    chosen = grams[standing]
    stays = np.ones(len(standing), dtype=bool)
    for rows, columns, jaccard in _blocks(chosen, chosen, lower=True):
        # Columns of earlier blocks are already decided; within the diagonal block, decide row by row.
        alike = (jaccard >= near) & (columns < rows) & stays[columns] & stays[rows]
        order = np.argsort(rows[alike], kind="stable")
        for row, column in zip(rows[alike][order], columns[alike][order], strict=True):
            if stays[column]:
                stays[row] = False
    return [int(number) for number in standing[~stays]]
