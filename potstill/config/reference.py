"""docs/config.md, written from the config itself so that it can't go stale.

python -m potstill.config.reference > docs/config.md
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from potstill.config.job import Config, Section
from potstill.config.sections import fields

INTRODUCTION = """# Config

One YAML file; every field can be overridden on the command line with `--set section.field=value`. `task` is the only field
that must be there. Written by `python -m potstill.config.reference > docs/config.md`.
"""


def as_markdown(model: type[Section] = Config) -> str:
    """A table of every field: name, default, what it is and what is allowed."""
    rows = ["| field | default | what it is |", "|---|---|---|"]
    for name, field in fields(model, ""):
        default = (
            "required" if field.is_required() else f"`{_plain(field)}`" if _plain(field) not in ("", None) else "-"
        )
        bounds = ", ".join(_bounds(field))
        rows.append(f"| `{name}` | {default} | {field.description or ''}{f' ({bounds})' if bounds else ''} |")
    return INTRODUCTION + "\n" + "\n".join(rows) + "\n"


def _plain(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True, validated_data={})
    return list(value) if isinstance(value, tuple) else value


def _bounds(field: FieldInfo) -> list[str]:
    """What is allowed: words of a Literal, and bounds, also inside a union."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    allowed: list[str] = []
    for part in (field.annotation, *get_args(field.annotation)):
        if get_origin(part) is Literal:
            allowed.append(" or ".join(f"`{word}`" for word in get_args(part)))
    inside = [m for part in get_args(field.annotation) if get_origin(part) is Annotated for m in get_args(part)[1:]]
    metadata = [
        *field.metadata,
        *(m for one in inside for m in (one.metadata if isinstance(one, FieldInfo) else [one])),
    ]
    allowed += [f"{words[n]} {getattr(m, n)}" for m in metadata for n in words if getattr(m, n, None) is not None]
    return allowed


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
