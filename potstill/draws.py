"""Keyed random draws: each draw depends on its key only, never on earlier draws.

``uniform(seed, "partner", label, 3)`` is the same number in every process, in every run and on every machine. So a plan
for 50 texts per class is a prefix of the plan for 100, and changing a setting changes only what depends on it (common
random numbers; DESIGN idea 3).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Key = str | int | float | None


def digest(value: object, size: int = 16) -> str:
    """BLAKE2b of ``value`` as canonical JSON, in hexadecimal (``2 * size`` characters)."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=size).hexdigest()


def generator(seed: int, *key: Key) -> np.random.Generator:
    """A random generator for ``key``, independent of those of other keys."""
    return np.random.Generator(np.random.PCG64(int(digest([seed, *key]), 16)))


def uniform(seed: int, *key: Key) -> float:
    """A number in [0, 1) for ``key``."""
    return float(generator(seed, *key).random())


def pick(options: Sequence[T], seed: int, *key: Key) -> T:
    """One of ``options``, uniformly. Raises ``IndexError`` if there are none."""
    return options[int(uniform(seed, *key) * len(options))]


def shuffle(items: Sequence[T], seed: int, *key: Key) -> list[T]:
    """``items`` in a random order."""
    return [items[i] for i in generator(seed, *key).permutation(len(items))]


def sample(items: Sequence[T], count: int, seed: int, *key: Key) -> list[T]:
    """Up to ``count`` of ``items`` without replacement. A smaller sample is a prefix of a larger one."""
    return shuffle(items, seed, *key)[:count]
