"""Parse the teacher's replies into texts, without list markers and the model's own remarks.

read_reply(" Who wrote Faust ?\\n4. Who is the pope ?\\n5. Who was", finish_reason="length").texts
-> ["Who wrote Faust ?", "Who is the pope ?"]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CHATTER = "chatter"
HEADING = "heading"
CUT_SHORT = "cut short"
OTHER_LIST = "in another list"

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
# A chat model's remarks around its list. Matches nothing that a user could write: "I cannot log in", "I can't create an
# account" and "Let me know when it arrives" are texts. A numbered line is always a text.
_CHATTER = re.compile(
    r"""^(?:
      (?:sure|certainly|of\ course|okay|absolutely|great)\b[\s,.!:-]*(?:here(?:'s|\ is|\ are|\ you\ go)\b.*)?$
    | here(?:'s|\ is|\ are)\b.*:$
    | here\ are\ (?!my\b|the\b)[^?]*\b(?:examples|texts|sentences|questions|messages)\b[^?]*$
    | here(?:'s|\ is)\ (?:the|a|your)\b[^?]*\blist\b[^?]*$
    | here(?:'s|\ is)\ (?:an|one)\ example\b[^?]*$
    | these\ (?:examples|sentences|texts|questions|messages)\ (?:are|show|illustrate|cover|reflect|represent|should)\b
    | note\s*:\s*(?:these|this\ (?:is|list)|the\ (?:above|examples|texts|sentences|questions|messages)|all\ (?:of\ )?(?:these|the)|i\ have|i've)\b
    | (?:explanation|answer|class|label)\s*:
    | i\ hope\ (?:this|these|that|it)\b.*\b(?:helps?|useful)\b
    | let\ me\ know\ if\ you(?:'d|\ would)?\ (?:like|need|want)\b
    | as\ an\ ai\ (?:language\ |assistant\b|model\b)
    | as\ an\ ai\b,
    | (?:(?:i'm|i\ am)\ sorry,?\s+(?:but\s+)?)?i\ (?:cannot|can't|am\ unable\ to|'m\ unable\ to)\ (?:
          (?:help|assist)(?:\ you)?(?:\ with\ (?:that|this|your)\b.*)?\.?$
        | (?:provide|generate|create|write|fulfil)\ (?:
              (?:that|this|it|these|those)[.!]?$
            | (?:your|this|that)\ request\b
            | (?:\w+\ ){0,3}(?:content|examples?|sentences?)\b
          )
      )
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}


@dataclass(frozen=True, slots=True)
class ReadReply:
    """The ``texts`` of a reply, in order, and the number of lines ``dropped``, by reason. Lines around a numbered list
    are not counted."""

    texts: list[str]
    dropped: dict[str, int]


def read_reply(
    text: str, *, finish_reason: str | None = None, class_names: Sequence[str] = (), min_letters: int = 2
) -> ReadReply:
    """All texts of a reply, in order, one line each and without repeats.

    A reply cut off by length loses its last line, which is incomplete. In a numbered list, lines without a number are
    ignored and a number that does not increase ends the list, since small models drift into other lists.
    ``class_names``: headings such as "location: The question asks ..." are not texts.
    """
    lines = text.split("\n")
    dropped: Counter[str] = Counter()
    if finish_reason == "length":
        dropped[CUT_SHORT] += _letters(lines.pop()) >= min_letters
    found: list[str] = []
    numbers = [_NUMBER.match(line) for line in lines]
    is_list = any(numbers)
    first_content = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    last_number: int | None = None
    for i, (line, number) in enumerate(zip(lines, numbers, strict=True)):
        if not line.strip():
            continue
        ended = last_number is not None and (number is None or int(number[1]) <= last_number)
        if ended:
            dropped[OTHER_LIST] += sum(map(bool, numbers[i:]))
            break
        if number:
            last_number = int(number[1])
        elif is_list and i != first_content:
            continue  # a line before the first number may be an introduction
        for place, part in enumerate(_INLINE_NUMBER.split(line)):
            cleaned = clean_line(part)
            listed = bool(number) or place > 0
            reason = _reason_to_drop(cleaned, class_names, listed)
            if _letters(cleaned) < min_letters:
                continue
            if reason is None:
                found.append(cleaned)
            elif listed or not is_list:
                dropped[reason] += 1
    return ReadReply(list(dict.fromkeys(found)), dict(+dropped))


def clean_line(line: str) -> str:
    """Strip number, bullet, "Example:", quotes and "(85% x, 15% y)" from a line, and collapse white space."""
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
    # Remove only a pair around the whole line; quotes inside belong to the text.
    if len(line) >= 2 and line.endswith(closing) and closing not in line[1:-1]:
        return line[1:-1].strip()
    if line.count(line[0]) == 1 and line[0] in '"“«`' and closing not in line[1:]:
        return line[1:].strip()
    return line


def _letters(line: str) -> int:
    return sum(character.isalpha() for character in line)


def _reason_to_drop(line: str, class_names: Iterable[str], listed: bool) -> str | None:
    """Why a cleaned line is not a text; None if it is one. ``listed``: it has a number in the reply's list."""
    if not listed and _CHATTER.match(line):
        return CHATTER
    folded = line.casefold()
    if line.endswith(":") or any(
        folded == name.casefold() or folded.startswith((f"{name.casefold()}:", f"{name.casefold()} ("))
        for name in class_names
    ):
        return HEADING
    return None
