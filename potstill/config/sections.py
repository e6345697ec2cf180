"""The base class of all config sections, and the defaults under POTSTILL_HOME."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


def home() -> Path:
    """The default folder of the ledger, the runs and MLflow's database."""
    return Path(os.environ.get("POTSTILL_HOME", "~/.potstill")).expanduser().absolute()


def database_uri(uri: str, default: str) -> str:
    """``uri`` with ``~`` expanded; if empty, the SQLite file ``default`` under ``home``."""
    if not uri:
        return f"sqlite:///{home()}/{default}"
    path = uri.removeprefix("sqlite:///")
    return f"sqlite:///{Path(path).expanduser()}" if path != uri and path.startswith("~") else uri


class Section(BaseModel):
    """Base class of all sections: immutable; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def fields(model: type[Section], prefix: str = "") -> list[tuple[str, FieldInfo]]:
    """All fields with their full dotted names, in order. Members of a union get their ``kind`` appended in brackets."""
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
