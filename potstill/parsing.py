"""Replies into texts: every text of a reply, cleaned of what the model put around it.

parse_reply(" Who wrote Faust ?\\n4. Who is the pope ?\\n5. Who was", finish_reason="length")
-> ["Who wrote Faust ?", "Who is the pope ?"]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(
    r"^\s*(?:[-*•]\s*)?(?:\*\*)?(?:(?:example|sentence|text|utterance|item|question|headline|tweet|message)\s*(?:no\.?\s*|#)?)?(\d{1,3})\s*[.):\]](?:\*\*)?\s*",
    re.IGNORECASE,
)
_INLINE_NUMBER = re.compile(
    r"(?<=[.?!\"'])\s+\d{1,2}[.)]\s+(?=[A-Z\"“'])"
)  # "Is it? 2. Who was it?": a list on one line
_BULLET = re.compile(r"^\s*[-*•–]\s+")
_LABELLED = re.compile(r"^\s*(?:example|sentence|text|utterance|question|headline|tweet|message)\s*:\s*", re.IGNORECASE)
_SHARES = re.compile(r"\s*[\[(][^()\[\]]*\b\d{1,3}\s*%[^()\[\]]*[\])]\s*$")
# What a chat model says around its list. Only what can't be a text of a user's: "I cannot log in" and
# "Let me know when it arrives" are texts.
_CHATTER = re.compile(
    r"""^(?:
      (?:sure|certainly|of\ course|okay|absolutely|great)\b[\s,.!:-]*(?:here\b.*)?$
    | here(?:'s|\ is|\ are)\b.*(?::|\b(?:examples?|texts?|sentences?|questions?|messages?|list)\b[^?]*)$
    | these\ (?:examples|sentences|texts|questions|messages)\b
    | (?:note|explanation|answer|output|class|label)\s*:
    | i\ hope\ (?:this|these|that|it)\b.*\b(?:helps?|useful)\b
    | let\ me\ know\ if\ you(?:'d|\ would)?\ (?:like|need|want)\b
    | as\ an\ ai\b
    | (?:(?:i'm|i\ am)\ sorry,?\s+(?:but\s+)?)?i\ (?:cannot|can't|am\ unable\ to|'m\ unable\ to)\ (?:help|assist|provide|generate|create|write|fulfil)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}


def parse_reply(
    text: str, *, finish_reason: str | None = None, class_names: Sequence[str] = (), min_letters: int = 2
) -> list[str]:
    """All texts of a reply, in order, each on one line; repeats within the reply are dropped.

    A reply that ended by length loses its last line, which is half a text. Once a numbered line was seen,
    lines without a number are taken for chatter, and a number that does not count on ends the list: small
    models drift into other lists. ``class_names``: headings such as "location: The question asks ..." are no texts.
    """
    lines = text.split("\n")
    if finish_reason == "length":
        lines = lines[:-1]
    found: list[str] = []
    numbers = [_NUMBER.match(line) for line in lines]
    is_list = any(numbers)
    first_content = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    last_number: int | None = None
    for i, (line, number) in enumerate(zip(lines, numbers, strict=True)):
        if not line.strip():
            continue
        if number:
            value = int(number[1])
            if last_number is not None and value <= last_number:
                break
            last_number = value
        elif is_list and i != first_content:
            # Before the first number it may be an introduction; after one, the list is over.
            if last_number is not None:
                break
            continue
        for part in _INLINE_NUMBER.split(line):
            cleaned = clean_line(part)
            if _is_text(cleaned, class_names, min_letters):
                found.append(cleaned)
    return list(dict.fromkeys(found))


def clean_line(line: str) -> str:
    """A line without number, bullet, "Example:", quotes and "(85% x, 15% y)"; inner white space collapsed."""
    while True:
        stripped = _NUMBER.sub("", line, count=1) if not re.match(r"^\s*\d+[.:]\d", line) else line
        stripped = _BULLET.sub("", stripped, count=1)
        stripped = _LABELLED.sub("", stripped, count=1)
        stripped = _SHARES.sub("", stripped)
        stripped = " ".join(stripped.replace("**", " ").split())
        stripped = _unquote(stripped)
        if stripped == line:
            return stripped
        line = stripped


def _unquote(line: str) -> str:
    closing = _QUOTES.get(line[:1])
    if closing is None:
        return line
    # Only a pair around the whole line goes; quotes inside belong to the text.
    if len(line) >= 2 and line.endswith(closing) and closing not in line[1:-1]:
        return line[1:-1].strip()
    if line.count(line[0]) == 1 and line[0] in '"“«`' and closing not in line[1:]:
        return line[1:].strip()
    return line


def _is_text(line: str, class_names: Iterable[str], min_letters: int) -> bool:
    if sum(character.isalpha() for character in line) < min_letters or _CHATTER.match(line):
        return False
    if line.endswith(":"):
        return False
    folded = line.casefold()
    return not any(
        folded == name.casefold() or folded.startswith((f"{name.casefold()}:", f"{name.casefold()} ("))
        for name in class_names
    )
