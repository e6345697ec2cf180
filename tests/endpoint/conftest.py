from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests.endpoint.behaviour import Script
from tests.endpoint.client import Endpoint


@pytest.fixture(scope="session")
def running() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: Endpoint) -> Endpoint:
    """An endpoint that behaves, with an empty book."""
    running.script(**asdict(Script()))
    running.clear_book()
    return running
