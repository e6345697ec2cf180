"""A record of which row was computed in which step by whom: proof that a resumed training saw every text once.

Off unless asked for (``TrainingJob.record``). A line is written before the step it tells of is computed. After a
lost worker the steps since the last checkpoint are computed again: what counts is the last attempt at a step.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from typing import Any


class Coverage:
    """The record of one worker's steps of one arm: ``<folder>/coverage/<attempt>-<rank>.jsonl``, a local folder.

    ``attempt`` is the same for all workers, and larger for a later one.
    """

    def __init__(self, folder: str, attempt: int, rank: int) -> None:
        os.makedirs(f"{folder}/coverage", exist_ok=True)
        self._file = open(f"{folder}/coverage/{attempt:020d}-{rank}.jsonl", "w")  # noqa: SIM115
        self._who = {"attempt": attempt, "rank": rank}

    def note(self, step: int, rows: Sequence[int]) -> None:
        """This worker computes ``rows`` (numbers of the arm's rows) in ``step`` (from 1)."""
        self._file.write(json.dumps({"step": step, "rows": [int(row) for row in rows], **self._who}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_coverage(folder: str) -> list[dict[str, Any]]:
    """All lines of all workers, by attempt: ``{"step", "rows", "attempt", "rank"}``.

    A line that a killed worker left half-written is left out.
    """
    lines = []
    for path in sorted(glob.glob(f"{folder}/coverage/*.jsonl")):
        with open(path) as file:
            for line in file:
                if line.endswith("\n"):
                    lines.append(json.loads(line))
    return lines


def what_counts(lines: Sequence[dict[str, Any]]) -> dict[int, list[int]]:
    """The rows of every step, sorted, in the last attempt at it."""
    last: dict[int, int] = {}
    for line in lines:
        last[line["step"]] = max(line["attempt"], last.get(line["step"], 0))
    rows: dict[int, list[int]] = {step: [] for step in sorted(last)}
    for line in lines:
        if line["attempt"] == last[line["step"]]:
            rows[line["step"]] += line["rows"]
    return {step: sorted(found) for step, found in rows.items()}
