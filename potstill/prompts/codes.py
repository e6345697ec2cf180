"""One-character codes for classes, for models whose answer is read from a single token.

Class names take several tokens and may share their first; a letter is one token in every common tokenizer. Codes depend
only on the set of names, so the code that writes prompts and the code that reads answers agree.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

CODES = string.ascii_uppercase + string.ascii_lowercase + string.digits


def code_names(names: Sequence[str]) -> dict[str, str]:
    """Name -> code, in the order of ``names``. Each name is its own code if there are more names than ``CODES``."""
    if len(names) > len(CODES):
        return {name: name for name in names}
    codes = dict(zip(sorted(names), CODES, strict=False))
    return {name: codes[name] for name in names}


def resolve(reply: str, codes: dict[str, str]) -> str | None:
    """The class that a free-text reply names, by code or name; None if it names no class, or two.

    ``codes``: name -> code.
    """
    answer = " ".join(reply.split()).strip("\"'`*.:()[] ")
    by_code = {code: name for name, code in codes.items()}
    if answer in by_code:
        return by_code[answer]
    folded = answer.casefold()
    by_name = {" ".join(name.casefold().split()): name for name in codes}
    if folded in by_name:
        return by_name[folded]
    first = re.match(r"(\w)[.):\]*]", answer)  # "B. refund", "B) refund", "B: refund"
    if first and first[1] in by_code:
        return by_code[first[1]]
    found = [name for name in by_name if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", folded)]
    # "app error" contains "app" but does not mean it.
    found = [name for name in found if not any(name != other and name in other for other in found)]
    return by_name[found[0]] if len(found) == 1 else None
