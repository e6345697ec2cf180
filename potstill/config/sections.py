"""What all sections of the config have in common, and where potstill lives on a machine."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict


def home() -> Path:
    """Where ledger, runs and MLflow's database live unless the config says otherwise."""
    return Path(os.environ.get("POTSTILL_HOME", "~/.potstill")).expanduser().absolute()


class Section(BaseModel):
    """Base of all sections: immutable, and a field that does not exist is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
