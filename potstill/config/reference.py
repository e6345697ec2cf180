"""docs/config.md, written from the config itself so that it can't go stale.

python -m potstill.config.reference > docs/config.md
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from potstill.config.job import Config, Section

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


def fields(model: type[Section], prefix: str = "") -> list[tuple[str, FieldInfo]]:
    """Every field of a config under its whole name, in order; kinds of teacher one after another."""
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        plain = [get_args(one)[0] if get_origin(one) is Annotated else one for one in get_args(inner)]
        if get_origin(inner) in (dict, tuple):
            plain = []
        kinds = [kind for kind in plain if isinstance(kind, type) and issubclass(kind, Section)]
        if isinstance(inner, type) and issubclass(inner, Section):
            found += fields(inner, f"{prefix}{name}.")
        elif len(kinds) == 1 and type(None) in plain:
            found += fields(kinds[0], f"{prefix}{name}.")
        elif len(kinds) > 1:
            for kind in kinds:
                tag = get_args(kind.model_fields["kind"].annotation)[0]
                found += [(f"{place} ({tag})", one) for place, one in fields(kind, f"{prefix}{name}.")]
        else:
            found.append((prefix + name, field))
    return found


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
