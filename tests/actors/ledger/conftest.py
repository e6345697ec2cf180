"""Tests of the ledger's SQL run against SQLite and PostgreSQL: every test in this folder that takes ``uri``."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a ledger that does not exist yet, in either database."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_uri")
    return f"sqlite:///{tmp_path}/deep/ledger.db"
