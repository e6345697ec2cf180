"""EDA (Wei & Zou, EMNLP 2019): the seeds, edited word by word. No language model.

Four edits, each of a share ``RATE`` of a text's words (at least one): words replaced by a synonym, synonyms of words
put in at random places, pairs of words swapped, words left out. A text gets the four in turn, as in the authors' code.
Synonyms come from WordNet (``potstill/strategies/wordnet.py``), stop words are never replaced. Differences from that code: case and
punctuation of a text stay, and draws are keyed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from potstill import draws
from potstill.config import AugmentConfig
from potstill.strategies import wordnet
from potstill.strategies.contract import Written, texts_wanted
from potstill.task import Task, TaskData

RATE = 0.05
TRIES = 20  # edits of a seed for each text wanted of it; short texts have few different ones
Synonyms = Callable[[str], tuple[str, ...]]

_STOP_WORDS = frozenset(
    [
        "a",
        "about",
        "above",
        "after",
        "again",
        "against",
        "all",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "being",
        "below",
        "between",
        "both",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "down",
        "during",
        "each",
        "few",
        "for",
        "from",
        "further",
        "had",
        "has",
        "have",
        "having",
        "he",
        "her",
        "here",
        "hers",
        "herself",
        "him",
        "himself",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "itself",
        "just",
        "me",
        "more",
        "most",
        "my",
        "myself",
        "no",
        "nor",
        "not",
        "now",
        "of",
        "off",
        "on",
        "once",
        "only",
        "or",
        "other",
        "our",
        "ours",
        "ourselves",
        "out",
        "over",
        "own",
        "same",
        "she",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "theirs",
        "them",
        "themselves",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "too",
        "under",
        "until",
        "up",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
        "yours",
        "yourself",
        "yourselves",
    ]
)


def collect(task: Task, data: TaskData, augment: AugmentConfig, seed: int) -> Iterator[Written]:
    """Up to ``texts_wanted`` different edits of every class's seeds, the seeds in turn. ``InputError`` without WordNet."""
    synonyms = wordnet.load()
    wanted = texts_wanted(augment)
    for label in task.labels:
        own = [row.text for row in data.seeds if row.label == label]
        seen = set(own)
        count = 0
        for i in range(TRIES * wanted if own else 0):
            if count == wanted:
                break
            text = edit(own[i % len(own)], i // len(own), draws.generator(seed, "eda", label, i), synonyms)
            if text not in seen:
                seen.add(text)
                count += 1
                yield Written(text, label)


def edit(text: str, turn: int, random: np.random.Generator, synonyms: Synonyms, rate: float = RATE) -> str:
    """``text`` after one kind of edit: replacement, insertion, swap or deletion, by ``turn``. Never empty."""
    words = text.split()
    if not words:
        return text
    kind = (_replace, _insert, _swap, _delete)[turn % 4]
    return " ".join(kind(words, max(1, math.floor(rate * len(words))), random, synonyms, rate))


def _replace(words: list[str], count: int, random: np.random.Generator, synonyms: Synonyms, rate: float) -> list[str]:
    words, changed = list(words), 0
    for place in random.permutation(len(words)):
        found = _options(words[place], synonyms)
        if found:
            words[place] = _dressed(words[place], found[random.integers(len(found))])
            changed += 1
        if changed == count:
            break
    return words


def _insert(words: list[str], count: int, random: np.random.Generator, synonyms: Synonyms, rate: float) -> list[str]:
    words = list(words)
    for _ in range(count):
        for place in random.permutation(len(words)):
            found = _options(words[place], synonyms)
            if found:
                words.insert(int(random.integers(len(words) + 1)), found[random.integers(len(found))])
                break
    return words


def _swap(words: list[str], count: int, random: np.random.Generator, synonyms: Synonyms, rate: float) -> list[str]:
    words = list(words)
    for _ in range(count if len(words) > 1 else 0):
        one, other = random.choice(len(words), size=2, replace=False)
        words[one], words[other] = words[other], words[one]
    return words


def _delete(words: list[str], count: int, random: np.random.Generator, synonyms: Synonyms, rate: float) -> list[str]:
    kept = [word for word in words if random.random() >= rate]
    return kept or [words[random.integers(len(words))]]


def _core(word: str) -> str:
    return word.strip(".,;:!?\"'()[]").casefold()


def _options(word: str, synonyms: Synonyms) -> tuple[str, ...]:
    core = _core(word)
    return () if core in _STOP_WORDS or not core.isalpha() else synonyms(core)


def _dressed(word: str, synonym: str) -> str:
    """``synonym`` with the capital and the punctuation of ``word``."""
    core = _core(word)
    start = word.casefold().find(core)
    put = synonym.capitalize() if word[start : start + 1].isupper() else synonym
    return word[:start] + put + word[start + len(core) :]
