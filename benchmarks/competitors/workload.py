"""What every side of ``benchmarks/fanout.py`` is asked, and how it talks to the one who measures. Standard library only.

A side is a process: ``python SIDE.py '{"base_url": ..., "requests": 3000, "in_flight": 256}'``. It prints ``ready`` once it has
started up, waits for a line, works, prints ``done {...}`` and waits for its standard input to close.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

MODEL = "scripted-1"
MAX_TOKENS = 64
SYSTEM = "You write questions for a data set."
_PROMPT = "Write a question that asks for a number. " * 15  # about 600 characters


def prompt(tag: str, number: int) -> str:
    """A prompt that nobody else asks."""
    return f"{tag} {number}. {_PROMPT}"


def messages(tag: str, number: int) -> list[dict[str, str]]:
    """The same as chat messages."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt(tag, number)}]


def serve(work: Callable[[], dict[str, Any]]) -> None:
    """Say that all is ready, do ``work`` when told to, and say what came of it."""
    say("ready")
    if not sys.stdin.readline():
        return
    said = work()
    say("done " + json.dumps({"finished_at": time.time(), **said}))
    sys.stdin.read()


def say(line: str) -> None:
    """A line to the one who measures, past whatever else a library prints."""
    print(f"@@{line}", flush=True)


def options() -> dict[str, Any]:
    """What this side was told to do."""
    found: dict[str, Any] = json.loads(sys.argv[1])
    return found
