"""The content of a page before it is HTML: sections of paragraphs, tables, charts and examples. All of it is plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A few sentences; ``muted``: a side note."""

    kind: ClassVar[str] = "paragraph"
    text: str
    muted: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under ``columns``; the first column names the row. ``strong``: indices of highlighted rows.
    ``shades``: for each cell after the first a share of 1 that colours it; ``folded``: shown when opened."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()
    shades: Sequence[Sequence[float]] | None = None
    folded: bool = False
    note: str = ""


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure without a title, and its caption."""

    kind: ClassVar[str] = "chart"
    caption: str
    figure: Figure


@dataclass(frozen=True, slots=True)
class ExampleText:
    """A text with its label, the class it was written for (``old_label``), and more ``facts`` about it."""

    text: str
    label: str
    old_label: str | None = None
    facts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Examples:
    """A sample of texts under a heading that folds; ``count``: the number of all."""

    kind: ClassVar[str] = "examples"
    heading: str
    count: int
    texts: Sequence[ExampleText]
    opened: bool = False


Block = Paragraph | Table | Chart | Examples


@dataclass(frozen=True, slots=True)
class PageSection:
    """A part of the page that links can point to (``anchor``)."""

    anchor: str
    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """A report: the ``answer``, then ``facts`` (name, value), then the sections. ``good``: whether the answer is good news;
    ``None`` if it is neither."""

    title: str
    kicker: str
    answer: str
    detail: str
    good: bool | None
    facts: Sequence[tuple[str, str]]
    sections: Sequence[PageSection]
    footer: str = ""
