"""The four tables that travel between stages: one dataclass and one Arrow schema each.

``request -> response -> example -> prediction``; all are written as Parquet under
``<storage>/<run>/<table>/`` and every row can be traced to the request that made it.

Rows become tables, and tables rows, column by column: a million requests pass through here, and a dict for
each row takes ten times as long.
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
UNKNOWN = ""  # label of an example whose class nobody has said yet
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt.

    ``system``, ``user`` and ``assistant`` go through the model's chat template; a last ``assistant``
    message is continued, not answered. A single ``prompt`` message is raw text to be continued, for
    models that complete patterns better than they follow orders.
    """

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn. ``max_tokens`` in tokens; generation also ends at any of ``stop``."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Numbers that are equal are made the same: 0, 0.0 and -0.0 would each give a request an id of its own."""
        for name in ("temperature", "top_p"):
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)


_SAMPLING_FIELDS = tuple(one.name for one in fields(Sampling))


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the teacher. Without ``choices`` it asks for text, with them for a class.

    ``request_id`` is a hash of what is *sent* (model, messages, sampling, choices) and of ``occurrence``
    (which of several draws of the same prompt), never of stage or task: the same question is paid for once.
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
    """What the teacher answered, raw.

    ``choice_logprobs[i]`` is the natural log-probability of ``request.choices[i]`` as the model gave it
    (uncalibrated; ``None`` where a server did not return that choice); ``residual_mass`` is the
    probability outside the returned tokens where a server shows only the top few. ``error`` is set,
    and the text empty, where the request failed.
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
        # NUL and lone surrogates fit into no Parquet file and not every database; all must see the same text.
        for name in ("text", "error"):
            value = getattr(self, name)
            if value and ("\0" in value or not value.isascii()):
                object.__setattr__(self, name, _UNSTORABLE.sub("\ufffd", value))


@dataclass(frozen=True, slots=True)
class Example:
    """A text with what is known of its class.

    ``label_probs`` is a distribution over the task's classes in the task's order. ``target_label`` is
    the class the text was written for (``None``: for none, and until relabelling its ``label`` is ``UNKNOWN``), ``teacher_label`` the one the teacher took it for when asked, ``label``
    the one it is used with. Rows that a filter drops stay
    in the table with ``kept=False`` and the reason.
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
    """A student's answer for one test text. ``label_probs`` in the task's class order."""

    example_id: str
    label: str
    label_probs: tuple[float, ...]
    predicted: str


_TEXT, _FLOAT, _INT, _BOOL = pa.string(), pa.float64(), pa.int64(), pa.bool_()
_MESSAGE = pa.struct([("role", _TEXT), ("content", _TEXT)])
_SAMPLING = pa.struct([("temperature", _FLOAT), ("top_p", _FLOAT), ("max_tokens", _INT), ("stop", pa.list_(_TEXT))])

REQUEST = pa.schema(
    [
        pa.field("request_id", _TEXT, nullable=False),
        ("stage", _TEXT),
        ("task", _TEXT),
        ("strategy", _TEXT),
        ("renderer", _TEXT),
        ("provider", _TEXT),
        ("model", _TEXT),
        ("weights_digest", _TEXT),
        ("messages", pa.list_(_MESSAGE)),
        ("sampling", _SAMPLING),
        ("choices", pa.list_(_TEXT)),
        ("occurrence", _INT),
        ("target_label", _TEXT),
        ("mix_label", _TEXT),
        ("alpha", _FLOAT),
        ("exemplar_ids", pa.list_(_TEXT)),
    ]
)
RESPONSE = pa.schema(
    [
        pa.field("request_id", _TEXT, nullable=False),
        ("text", _TEXT),
        ("finish_reason", _TEXT),
        ("choice_logprobs", pa.list_(_FLOAT)),
        ("residual_mass", _FLOAT),
        ("prompt_tokens", _INT),
        ("completion_tokens", _INT),
        ("cost_usd", _FLOAT),
        ("latency_s", _FLOAT),
        ("created_at", _FLOAT),
        ("error", _TEXT),
    ]
)
EXAMPLE = pa.schema(
    [
        pa.field("example_id", _TEXT, nullable=False),
        ("text", _TEXT),
        ("label", _TEXT),
        ("label_probs", pa.list_(_FLOAT)),
        ("source", _TEXT),
        ("strategy", _TEXT),
        ("request_id", _TEXT),
        ("relabel_request_id", _TEXT),
        ("target_label", _TEXT),
        ("teacher_label", _TEXT),
        ("mix_label", _TEXT),
        ("alpha", _FLOAT),
        ("confidence", _FLOAT),
        ("kept", _BOOL),
        ("dropped_because", _TEXT),
    ]
)
PREDICTION = pa.schema(
    [
        pa.field("example_id", _TEXT, nullable=False),
        ("label", _TEXT),
        ("label_probs", pa.list_(_FLOAT)),
        ("predicted", _TEXT),
    ]
)

SCHEMAS: dict[type, pa.Schema] = {Request: REQUEST, Response: RESPONSE, Example: EXAMPLE, Prediction: PREDICTION}

Row = TypeVar("Row", Request, Response, Example, Prediction)


def to_table(rows: Iterable[Row], kind: type[Row]) -> pa.Table:
    """Rows as an Arrow table with the declared schema of their kind."""
    rows, schema = list(rows), SCHEMAS[kind]
    columns = [_to_column(list(map(attrgetter(one.name), rows)), one) for one in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def from_table(table: pa.Table, kind: type[Row]) -> list[Row]:
    """The rows of a table written by ``to_table``; unknown columns are ignored."""
    columns = [
        _from_column(table[one.name]) if one.name in table.column_names else [None] * table.num_rows
        for one in fields(kind)
    ]
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
    known: dict[tuple[Any, ...], Sampling] = {}  # a stage has few
    keys = zip(*numbers, map(tuple, stops), strict=True)
    return [known.get(key) or known.setdefault(key, Sampling(*key)) for key in keys]


def _from_messages(lists: pa.ListArray) -> list[tuple[Message, ...]]:
    messages = map(Message, *(part.to_pylist() for part in lists.flatten().flatten()))
    return [tuple(islice(messages, count)) for count in lists.value_lengths().to_pylist()]


def from_record(record: Mapping[str, Any], kind: type[Row]) -> Row:
    """A row from plain lists and dicts, as JSON and Arrow give them."""
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
    """A stable id for a text of a given source."""
    return digest([text, source, request_id], size=8)
