"""Write docs/config.md from the config's fields, so that it cannot go stale.

python -m potstill.config.reference > docs/config.md
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from potstill.config.job import Config
from potstill.config.sections import fields

EVERYDAY = (
    "task.preset",
    "task.data_dir",
    "task.seeds_per_class",
    "task.unlabelled",
    "seed",
    "storage",
    "teacher.kind",
    "teacher.model",
    "teacher.base_url",
    "teacher.api_key_env",
    "teacher.budget_usd",
    "augment.strategy",
    "augment.shots",
    "augment.per_class",
    "relabel.enabled",
    "relabel.votes",
    "student.model",
    "student.epochs",
    "student.workers",
    "evaluate.compare",
    "tracking.uri",
    "tracking.register_as",
    "search.space",
    "search.trials",
)
"""The fields of the first table, for every kind of teacher; all others are listed under "Advanced"."""

INTRODUCTION = """# Config

A config is one YAML file; only `task` is required. `--set section.field=value` overrides a field on the command line.
The first table lists the fields most users need. This file is written by
`python -m potstill.config.reference > docs/config.md`.
"""
HEAD = "| field | default | description |\n|---|---|---|"


def as_markdown() -> str:
    """The content of docs/config.md: the everyday fields, then all others by section. Every field appears once."""
    everyday, sections = [HEAD], dict[str, list[str]]()
    for name, field in fields(Config):
        path, _, kind = name.partition(" ")
        if path in EVERYDAY:
            everyday.append(_row(path, field, kind))
        else:
            section = f"{path.split('.')[0]}{': ' if kind else ''}{kind.strip('()')}"
            sections.setdefault(section, [HEAD]).append(_row(path, field))
    advanced = [f"### {section}\n\n" + "\n".join(rows) + "\n" for section, rows in sections.items()]
    return "\n".join([INTRODUCTION, *everyday, "\n## Advanced\n", "\n".join(advanced)])


def _row(path: str, field: FieldInfo, kind: str = "") -> str:
    default = "required"
    if not field.is_required():
        value = field.get_default(call_default_factory=True, validated_data={})
        default = "-" if value in ("", None) else f"`{value if isinstance(value, str) else json.dumps(value)}`"
    allowed = "; ".join(_bounds(field))
    name = f"`{path}` {kind}".strip()
    return f"| {name} | {default} | {field.description or ''}{f' ({allowed})' if allowed else ''} |"


def _bounds(field: FieldInfo) -> list[str]:
    """The allowed words of a Literal and the numeric bounds, including those of a union's members."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    members = get_args(field.annotation)
    metadata: list[Any] = list(field.metadata)
    for member in members:
        for one in get_args(member)[1:] if get_origin(member) is Annotated else ():
            metadata += one.metadata if isinstance(one, FieldInfo) else [one]
    allowed = [
        " or ".join(f"`{word}`" for word in get_args(part))
        for part in (field.annotation, *members)
        if get_origin(part) is Literal and len(get_args(part)) + len(members) > 2
    ]
    bounds = [f"{words[n]} {getattr(m, n)}" for m in metadata for n in words if getattr(m, n, None) is not None]
    return [*allowed, *([", ".join(dict.fromkeys(bounds))] if bounds else [])]


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
