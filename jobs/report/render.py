"""Render a page as one HTML file, style sheet and charts included. The template escapes every value."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.report.content import Page, Table
from jobs.report.svg import as_svg

_HERE = Path(__file__).parent


def render(page: Page) -> str:
    """The whole file. It loads nothing; its content security policy forbids it."""
    style = Markup((_HERE / "style.css").read_text())  # noqa: S704 (our own file)
    return _environment().get_template("template.html").render(page=page, style=style, table=_table, svg=as_svg)


def _table(block: Table) -> Markup:
    # Columns of words are left-aligned, columns of numbers are not.
    left = [any(cell[:1].isalpha() for cell in column) for column in zip(*block.rows, strict=True)]
    return Markup(_environment().get_template("table.html").render(block=block, left=left))  # noqa: S704 (escaped there)


@cache
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
