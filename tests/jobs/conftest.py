"""A job on the mailroom task, prepared and not started."""

from pathlib import Path

import pytest

from jobs.run.job import prepare
from jobs.runtime.terminal import Terminal
from potstill.config import parse

MAILROOM = str(Path(__file__).parents[1] / "fixtures/tasks/mailroom")


@pytest.fixture
def job(tmp_path):
    content = {
        "task": MAILROOM,
        "storage": str(tmp_path / "runs"),
        "ledger": {"uri": f"sqlite:///{tmp_path}/ledger.db"},
        "augment": {"per_class": 4, "over_generate": 2.0},
        "evaluate": {"compare": ["seeds_only", "generated", "real_equal"]},
    }
    return prepare(parse(content), Terminal())
