"""Prompts and protocol shared by all competitors of ``benchmarks/fanout.py``. Standard library only.

A competitor is a process: ``python SCRIPT.py '{"base_url": ..., "requests": 3000, "in_flight": 256}'``. After start-up it
prints ``ready``, waits for a line, works, prints ``done {...}`` and waits for its standard input to close.
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
    """Return a unique prompt."""
    return f"{tag} {number}. {_PROMPT}"


def messages(tag: str, number: int) -> list[dict[str, str]]:
    """Return the prompt as chat messages."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt(tag, number)}]


def serve(work: Callable[[], dict[str, Any]]) -> None:
    """Report ready, wait for the start signal, run ``work`` and report its result."""
    say("ready")
    if not sys.stdin.readline():
        return
    said = work()
    say("done " + json.dumps({"finished_at": time.time(), **said}))
    sys.stdin.read()


def say(line: str) -> None:
    """Send a line to the measuring process, separate from anything libraries print."""
    print(f"@@{line}", flush=True)


def options() -> dict[str, Any]:
    """Return this competitor's options from the command line."""
    found: dict[str, Any] = json.loads(sys.argv[1])
    return found
