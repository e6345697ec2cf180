"""Pure functions that fit names and values to MLflow's rules and limits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jobs.tracking.server import redact
from potstill.draws import digest

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

MAX_PARAM_CHARACTERS = 6000
MAX_KEY_CHARACTERS = 250
_MAX_CELL_CHARACTERS = 500


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """``items`` in parts of at most ``size``: MLflow limits the size of a request."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def safe_key(key: str) -> str:
    """A name that MLflow accepts: forbidden characters become ``_``. Metric names contain class names, which can be anything."""
    cleaned = re.sub(r"[^\w\-./: ]", "_", key)
    cleaned = re.sub(r"/(?:\.{0,2}/)+", "/", cleaned).strip("/ ")
    cleaned = re.sub(r"(^|/)\.{1,2}(?=/|$)", r"\1_", cleaned) or "_"
    return (
        cleaned
        if len(cleaned) <= MAX_KEY_CHARACTERS
        else f"{cleaned[: MAX_KEY_CHARACTERS - 13]}-{digest(cleaned, size=6)}"
    )


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """A nested mapping as one with dotted names; lists stay whole."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def param_value(value: object) -> str:
    """``value`` as text: JSON for lists, no passwords, at most 6000 characters.

    A longer one is cut and ends in its length and digest, so that different values stay different.
    """
    text = redact(
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, tuple, dict)) else str(value)
    )
    if len(text) <= MAX_PARAM_CHARACTERS:
        return text
    mark = f" ... ({len(text)} characters, {digest(text, size=6)})"
    return text[: MAX_PARAM_CHARACTERS - len(mark)] + mark


def arrow_schema(table: pa.Table) -> str:
    """A table's columns as MLflow's JSON schema of a data set."""
    names = {"string": "string", "large_string": "string", "double": "double", "int64": "long", "bool": "boolean"}
    columns = [
        {"name": field.name, "type": names.get(str(field.type), "object"), "required": not field.nullable}
        for field in table.schema
    ]
    return json.dumps({"mlflow_colspec": columns})


def write_preview(table: pa.Table, path: Path) -> None:
    """Rows as ``{"columns": [...], "data": [[...]]}``, which MLflow's UI shows as a table; long cells are cut."""
    data = [[_cell(value) for value in row.values()] for row in table.to_pylist()]
    path.write_text(json.dumps({"columns": table.column_names, "data": data}, ensure_ascii=False, indent=1))


def _cell(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_CELL_CHARACTERS else text[: _MAX_CELL_CHARACTERS - 3] + "..."
