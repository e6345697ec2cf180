"""Start ``potstill`` as a user would: from the repository's root, with a separate home."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
MAILROOM = ROOT / "tests/fixtures/tasks/mailroom"


def write_config(path: Path, content: Mapping[str, Any]) -> str:
    """Write a config file and return its path for a command line."""
    path.write_text(yaml.safe_dump(dict(content)))
    return str(path)


def command(*arguments: str) -> list[str]:
    """``potstill ...`` with this interpreter."""
    return [sys.executable, "-m", "jobs", *arguments]


def environment(potstill_home: Path, **more: str) -> dict[str, str]:
    """This process's environment with another home and no cluster to join."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "POTSTILL_HOME": str(potstill_home), "COLUMNS": "120", **more}


def family(pid: int) -> list[psutil.Process]:
    """The process and all its descendants; empty if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill those that have not ended by themselves."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
