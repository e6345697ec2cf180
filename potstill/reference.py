"""docs/config.md, written from the config itself so that it can't go stale.

python -m potstill.reference > docs/config.md
"""

from __future__ import annotations

import sys
from typing import Any

from pydantic.fields import FieldInfo

from potstill.config import Config, Section

INTRODUCTION = """# Config

One YAML file; every field can be overridden on the command line with `--set section.field=value`. `task` is the only field
that must be there. Written by `python -m potstill.reference > docs/config.md`.
"""


def as_markdown(model: type[Section] = Config) -> str:
    """A table of every field: name, default, what it is and what is allowed."""
    rows = ["| field | default | what it is |", "|---|---|---|"]
    for name, field in _fields(model, ""):
        default = (
            "required" if field.is_required() else f"`{_plain(field)}`" if _plain(field) not in ("", None) else "-"
        )
        bounds = ", ".join(_bounds(field))
        rows.append(f"| `{name}` | {default} | {field.description or ''}{f' ({bounds})' if bounds else ''} |")
    return INTRODUCTION + "\n" + "\n".join(rows) + "\n"


def _fields(model: type[Section], prefix: str) -> list[tuple[str, FieldInfo]]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found += _fields(inner, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field))
    return found


def _plain(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True, validated_data={})
    return list(value) if isinstance(value, tuple) else value


def _bounds(field: FieldInfo) -> list[str]:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return [f"{words[n]} {getattr(m, n)}" for m in field.metadata for n in words if getattr(m, n, None) is not None]


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
