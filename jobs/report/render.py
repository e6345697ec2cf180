"""A page as HTML. Every value is escaped by the template; style sheet and charts are in the file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.report.content import Page, Table

_HERE = Path(__file__).parent


def render(page: Page) -> str:
    """The whole file. It asks for nothing from anywhere; its own policy forbids it to."""
    style = Markup((_HERE / "style.css").read_text())  # noqa: S704 (our own file)
    return _environment().get_template("template.html").render(page=page, style=style, table=_table)


def _table(block: Table) -> Markup:
    left = [
        any(cell[:1].isalpha() for cell in column) for column in zip(*block.rows, strict=True)
    ]  # words, not numbers
    return Markup(_environment().get_template("table.html").render(block=block, left=left))  # noqa: S704 (escaped there)


@cache
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
