"""What a page consists of, before it is HTML: sections of paragraphs, tables, charts and examples.

Everything is text; only charts are markup, made by ``jobs.report.charts``, which escapes what it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Some sentences; ``muted``: a remark."""

    kind: ClassVar[str] = "paragraph"
    text: str
    muted: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words under ``columns``; the first column names its row. ``strong``: numbers of rows that stand out.
    ``shades``: for every row a share of 1 for each of its cells but the first, which colours them (``None``: plain)."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()
    shades: Sequence[Sequence[float]] | None = None
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its caption."""

    kind: ClassVar[str] = "chart"
    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class ExampleText:
    """A text and its story: what it was written for, what the teacher took it for, what it is used with, in words."""

    text: str
    label: str
    old_label: str | None = None
    facts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Examples:
    """Texts of one source or fate under a heading that opens; ``count``: how many there are in all."""

    kind: ClassVar[str] = "examples"
    heading: str
    count: int
    texts: Sequence[ExampleText]
    opened: bool = False


Block = Paragraph | Table | Chart | Examples


@dataclass(frozen=True, slots=True)
class PageSection:
    """A part of the page with a place of its own (``anchor``)."""

    anchor: str
    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """A report: ``answer`` first, ``good``: whether that is good news (``None``: can't be told), then some ``facts``
    (name, value) and the sections."""

    title: str
    kicker: str
    answer: str
    detail: str
    good: bool | None
    facts: Sequence[tuple[str, str]]
    sections: Sequence[PageSection]
    footer: str = ""
