"""Short codes that stand for classes where a model's answer is read off one token.

A class name is several tokens and may begin like another one; a letter is one token in every tokenizer that
is in use. Which code is whose depends on the set of names alone, so that whoever writes the prompt and
whoever reads the answer agree without telling each other.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

CODES = string.ascii_uppercase + string.ascii_lowercase + string.digits


def code_names(names: Sequence[str]) -> dict[str, str]:
    """Name -> code, in the order of ``names``. With more names than ``CODES`` a name is its own code."""
    if len(names) > len(CODES):
        return {name: name for name in names}
    codes = dict(zip(sorted(names), CODES, strict=False))
    return {name: codes[name] for name in names}


def resolve(reply: str, codes: dict[str, str]) -> str | None:
    """The name that a reply in free words means: its code, or the name itself; ``None`` if it is neither.

    ``codes``: name -> code. A reply that names two classes means none.
    """
    said = " ".join(reply.split()).strip("\"'`*.:()[] ")
    by_code = {code: name for name, code in codes.items()}
    if said in by_code:
        return by_code[said]
    folded = said.casefold()
    by_name = {" ".join(name.casefold().split()): name for name in codes}
    if folded in by_name:
        return by_name[folded]
    led = re.match(r"(\w)[.):\]*]", said)  # "B. refund", "B) refund", "B: refund"
    if led and led[1] in by_code:
        return by_code[led[1]]
    held = [name for name in by_name if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", folded)]
    # "app" is part of "app error": where the longer name is said, the shorter one is not meant.
    held = [name for name in held if not any(name != other and name in other for other in held)]
    return by_name[held[0]] if len(held) == 1 else None
