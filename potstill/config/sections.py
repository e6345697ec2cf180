"""What all sections of the config have in common, and where potstill lives on a machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


def home() -> Path:
    """Where ledger, runs and MLflow's database live unless the config says otherwise."""
    return Path(os.environ.get("POTSTILL_HOME", "~/.potstill")).expanduser().absolute()


class Section(BaseModel):
    """Base of all sections: immutable, and a field that does not exist is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


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
