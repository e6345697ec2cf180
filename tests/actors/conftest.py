"""A ledger in SQLite, an empty PostgreSQL database and an endpoint."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import sqlalchemy as sa

from actors.ledger.store import LedgerStore
from tests.endpoint.behaviour import Script
from tests.endpoint.client import Endpoint
from tests.support import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server for this session."""
    try:
        with postgres.serve() as uri:
            yield uri
    except postgres.NoServer as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no PostgreSQL: {error}")


@pytest.fixture
def postgres_uri(postgres_server: str) -> Iterator[str]:
    """A new, empty PostgreSQL database."""
    name = f"ledger_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """The URI of a ledger that does not exist yet."""
    return f"sqlite:///{tmp_path}/deep/ledger.db"


@pytest.fixture(scope="module")
def running() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: Endpoint) -> Endpoint:
    """A well-behaved endpoint with an empty book and no batches."""
    running.script(**asdict(Script()))
    running.forget_batches()
    running.clear_book()
    return running


@pytest.fixture
def store(uri: str) -> Iterator[LedgerStore]:
    store = LedgerStore(uri)
    yield store
    store.close()
