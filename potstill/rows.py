"""The four tables passed between stages, each with a dataclass for its rows and an Arrow schema.

``request -> response -> example -> prediction``: all are stored as Parquet under ``<storage>/<run>/<table>/``, and
every row can be traced to the request that produced it.

Rows and tables are converted column by column. For a million requests that is ten times as fast as a dict per row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate, islice
from operator import attrgetter
from typing import Any, Literal, TypeVar

import pyarrow as pa

from potstill.draws import digest

Role = Literal["system", "user", "assistant", "prompt"]
UNKNOWN = ""  # label of an example that has no label yet
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt.

    ``system``, ``user`` and ``assistant`` go through the model's chat template; a last ``assistant``
    message is continued, not answered. A single ``prompt`` message is raw text to continue, for
    models that complete patterns better than they follow instructions.
    """

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings of a reply. Generation ends after ``max_tokens`` tokens or at any of ``stop``."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Normalise equal numbers: 0, 0.0 and -0.0 would give a request three different ids.
        for name in ("temperature", "top_p"):
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)


_SAMPLING_FIELDS = tuple(one.name for one in fields(Sampling))


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the teacher. Without ``choices`` it asks for text, with ``choices`` for a class.

    ``request_id`` is a hash of what is *sent* (model, messages, sampling, choices) and of ``occurrence`` (the index among
    several draws from the same prompt). Stage and task are not hashed, so the same question is paid for only once.
    """

    stage: str
    task: str
    strategy: str
    renderer: str
    provider: str
    model: str
    weights_digest: str | None
    messages: tuple[Message, ...]
    sampling: Sampling
    choices: tuple[str, ...] = ()
    occurrence: int = 0
    target_label: str | None = None
    mix_label: str | None = None
    alpha: float | None = None
    exemplar_ids: tuple[str, ...] = ()
    request_id: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        sent = {
            "provider": self.provider,
            "model": self.model,
            "weights_digest": self.weights_digest,
            "renderer": self.renderer,
            "messages": [[message.role, message.content] for message in self.messages],
            "sampling": {name: getattr(self.sampling, name) for name in _SAMPLING_FIELDS},
            "choices": self.choices,
            "occurrence": self.occurrence,
        }
        object.__setattr__(self, "request_id", digest(sent))


@dataclass(frozen=True, slots=True)
class Response:
    """The teacher's raw answer.

    ``choice_logprobs[i]`` is the model's uncalibrated natural log-probability of ``request.choices[i]``, None if the
    server did not return that choice. ``residual_mass`` is the probability outside the returned tokens if the server
    returns only the top few. If the request failed, ``error`` is set and the text is empty.
    """

    request_id: str
    text: str = ""
    finish_reason: str | None = None
    choice_logprobs: tuple[float | None, ...] = ()
    residual_mass: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0
    created_at: float = 0.0
    error: str | None = None

    def __post_init__(self) -> None:
        # Parquet and some databases can't store NUL or lone surrogates; all storage must hold the same text.
        for name in ("text", "error"):
            value = getattr(self, name)
            if value and ("\0" in value or not value.isascii()):
                object.__setattr__(self, name, _UNSTORABLE.sub("\ufffd", value))


@dataclass(frozen=True, slots=True)
class Example:
    """A training text and its labels.

    ``label_probs`` is a distribution over the task's classes in the task's order. ``target_label`` is the class the text
    was written for (None: no class, and ``label`` is ``UNKNOWN`` until relabelling), ``teacher_label`` the class the
    teacher assigned, and ``label`` the class used for training. Filtered rows stay in the table with ``kept=False`` and
    the reason.
    """

    example_id: str
    text: str
    label: str
    label_probs: tuple[float, ...] = ()
    source: str = "generated"
    strategy: str | None = None
    request_id: str | None = None
    relabel_request_id: str | None = None
    target_label: str | None = None
    teacher_label: str | None = None
    mix_label: str | None = None
    alpha: float | None = None
    confidence: float | None = None
    kept: bool = True
    dropped_because: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A student's prediction for one test text. ``label_probs`` is in the task's class order."""

    example_id: str
    label: str
    label_probs: tuple[float, ...]
    predicted: str


_TEXT, _FLOAT, _INT = pa.string(), pa.float64(), pa.int64()
_MESSAGE = pa.struct([("role", _TEXT), ("content", _TEXT)])
_SAMPLING = pa.struct([("temperature", _FLOAT), ("top_p", _FLOAT), ("max_tokens", _INT), ("stop", pa.list_(_TEXT))])
_ARROW_TYPES = {
    "str": _TEXT,
    "float": _FLOAT,
    "int": _INT,
    "bool": pa.bool_(),
    "Sampling": _SAMPLING,
    "tuple[Message, ...]": pa.list_(_MESSAGE),
    "tuple[str, ...]": pa.list_(_TEXT),
    "tuple[float, ...]": pa.list_(_FLOAT),
}


def _schema(kind: type[Any], key: str) -> pa.Schema:
    """The Arrow schema of a row class: one column per field, all nullable except ``key``, which comes first."""
    types = {one.name: _ARROW_TYPES[str(one.type).replace(" | None", "")] for one in fields(kind)}
    first = pa.field(key, types.pop(key), nullable=False)
    return pa.schema([first, *types.items()])


REQUEST = _schema(Request, "request_id")
RESPONSE = _schema(Response, "request_id")
EXAMPLE = _schema(Example, "example_id")
PREDICTION = _schema(Prediction, "example_id")
SCHEMAS: dict[type, pa.Schema] = {Request: REQUEST, Response: RESPONSE, Example: EXAMPLE, Prediction: PREDICTION}

Row = TypeVar("Row", Request, Response, Example, Prediction)


def to_table(rows: Iterable[Row], kind: type[Row]) -> pa.Table:
    """Convert rows to an Arrow table with the schema of their kind."""
    rows, schema = list(rows), SCHEMAS[kind]
    columns = [_to_column(list(map(attrgetter(one.name), rows)), one) for one in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def from_table(table: pa.Table, kind: type[Row]) -> list[Row]:
    """Convert a table written by ``to_table`` back to rows. Unknown columns are ignored."""
    known, absent = set(table.column_names), [None] * table.num_rows
    columns = [_from_column(table[one.name]) if one.name in known else absent for one in fields(kind)]
    return list(map(kind, *columns))


def _to_column(values: Sequence[Any], column: pa.Field) -> pa.Array:
    if column.type == _SAMPLING:
        return _to_structs(values, _SAMPLING)
    if column.type == pa.list_(_MESSAGE):
        ends = pa.array(accumulate(map(len, values), initial=0), pa.int32())
        return pa.ListArray.from_arrays(ends, _to_structs([one for some in values for one in some], _MESSAGE))
    return pa.array(values, column.type)


def _to_structs(values: Sequence[Any], struct: pa.StructType) -> pa.StructArray:
    parts = [pa.array(list(map(attrgetter(one.name), values)), one.type) for one in struct]
    return pa.StructArray.from_arrays(parts, fields=list(struct))


def _from_column(column: pa.ChunkedArray) -> list[Any]:
    if column.type == _SAMPLING:
        return [value for chunk in column.chunks for value in _from_samplings(chunk)]
    if column.type == pa.list_(_MESSAGE):
        return [value for chunk in column.chunks for value in _from_messages(chunk)]
    if pa.types.is_list(column.type):
        return [None if value is None else tuple(value) for value in column.to_pylist()]
    return column.to_pylist()


def _from_samplings(structs: pa.StructArray) -> list[Sampling]:
    *numbers, stops = (part.to_pylist() for part in structs.flatten())
    known: dict[tuple[Any, ...], Sampling] = {}  # a stage has few distinct ones
    keys = zip(*numbers, map(tuple, stops), strict=True)
    return [known.get(key) or known.setdefault(key, Sampling(*key)) for key in keys]


def _from_messages(lists: pa.ListArray) -> list[tuple[Message, ...]]:
    messages = map(Message, *(part.to_pylist() for part in lists.flatten().flatten()))
    return [tuple(islice(messages, count)) for count in lists.value_lengths().to_pylist()]


def from_record(record: Mapping[str, Any], kind: type[Row]) -> Row:
    """Build a row from plain lists and dicts, as read from JSON or Arrow."""
    return kind(**{name: _revive(name, value) for name, value in record.items()})


def _revive(name: str, value: Any) -> Any:
    if name == "messages":
        return tuple(Message(**message) for message in value)
    if name == "sampling":
        return Sampling(**{**value, "stop": tuple(value["stop"])})
    if isinstance(value, list):
        return tuple(value)
    return value


def example_id(text: str, source: str, request_id: str | None = None) -> str:
    """A stable id of a text from a given source."""
    return digest([text, source, request_id], size=8)
