"""EDA (Wei & Zou, EMNLP 2019): the seeds, edited word by word. No language model.

Four edits in turn, as in the authors' code, each of a share ``RATE`` of the words (at least one): synonym replacement,
insertion of synonyms at random places, swaps of two words, deletion. Synonyms come from WordNet
(``potstill/strategies/wordnet.py``); stop words (scikit-learn's list) are never replaced. Unlike that code, we keep
case and punctuation, and draws are keyed.
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
TRIES = 20  # edits per text wanted; short texts have few different ones
Synonyms = Callable[[str], tuple[str, ...]]


def collect(task: Task, data: TaskData, augment: AugmentConfig, seed: int) -> Iterator[Written]:
    """Up to ``texts_wanted`` distinct edits of every class's seeds in turn. Raises ``InputError`` without WordNet."""
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


def edit(text: str, turn: int, random: np.random.Generator, synonyms: Synonyms) -> str:
    """``text`` after replacement, insertion, swap or deletion, by ``turn``. Never empty, unless ``text`` is."""
    words = text.split()
    if not words:
        return text
    kind = (_replace, _insert, _swap, _delete)[turn % 4]
    return " ".join(kind(words, max(1, math.floor(RATE * len(words))), random, synonyms))


def _replace(words: list[str], count: int, random: np.random.Generator, synonyms: Synonyms) -> list[str]:
    words, changed = list(words), 0
    for place in random.permutation(len(words)):
        found = _options(words[place], synonyms)
        if found:
            words[place] = _with_case(words[place], found[random.integers(len(found))])
            changed += 1
        if changed == count:
            break
    return words


def _insert(words: list[str], count: int, random: np.random.Generator, synonyms: Synonyms) -> list[str]:
    words = list(words)
    for _ in range(count):
        for place in random.permutation(len(words)):
            found = _options(words[place], synonyms)
            if found:
                words.insert(int(random.integers(len(words) + 1)), found[random.integers(len(found))])
                break
    return words


def _swap(words: list[str], count: int, random: np.random.Generator, synonyms: Synonyms) -> list[str]:
    words = list(words)
    for _ in range(count if len(words) > 1 else 0):
        one, other = random.choice(len(words), size=2, replace=False)
        words[one], words[other] = words[other], words[one]
    return words


def _delete(words: list[str], count: int, random: np.random.Generator, synonyms: Synonyms) -> list[str]:
    kept = [word for word in words if random.random() >= RATE]
    return kept or [words[random.integers(len(words))]]


def _core(word: str) -> str:
    return word.strip(".,;:!?\"'()[]").casefold()


def _options(word: str, synonyms: Synonyms) -> tuple[str, ...]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    core = _core(word)
    return () if core in ENGLISH_STOP_WORDS or not core.isalpha() else synonyms(core)


def _with_case(word: str, synonym: str) -> str:
    """``synonym`` with the capitalisation and punctuation of ``word``."""
    core = _core(word)
    start = word.casefold().find(core)
    cased = synonym.capitalize() if word[start : start + 1].isupper() else synonym
    return word[:start] + cased + word[start + len(core) :]
