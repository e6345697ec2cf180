"""The errors potstill raises on purpose.

    PotstillError
    ├── InputError      invalid config, task, data or resources                (exit code 2)
    ├── StageError      a stage could not produce what the next one needs      (exit code 1)
    ├── TeacherError    the teacher could not be loaded or queried             (exit code 1)
    │   └── TeacherStopped   budget reached, or the endpoint accepts no requests
    └── LedgerError     the ledger can't be opened, read or written            (exit code 1)

An ``InputError`` carries *all* problems found, so that the user can fix them in one go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: where it is, what is wrong and how to fix it."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class PotstillError(Exception):
    """Base class of all errors potstill raises on purpose."""

    exit_code = 1


class InputError(PotstillError):
    """Invalid user input. Nothing was started and nothing was spent."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]]]:
        # Ray pickles exceptions; the default would rebuild this one from ``args``, the joined text.
        return type(self), (self.problems,)


class StageError(PotstillError):
    """A stage could not produce what the next one needs."""


class TeacherError(PotstillError):
    """The teacher could not be loaded or queried."""


class TeacherStopped(TeacherError):
    """No more requests may be sent: the budget is reached or the endpoint accepts none."""


class LedgerError(PotstillError):
    """The ledger can't be opened, read or written."""
