"""Every error potstill raises on purpose.

    PotstillError
    ├── InputError      what the user gave can't work: config, task, data, resources   (exit code 2)
    ├── StageError      a stage ran and could not give what the next one needs         (exit code 1)
    ├── TeacherError    the teacher's model could not be loaded or asked               (exit code 1)
    │   └── TeacherStopped   budget reached, or the endpoint lets nothing through
    └── LedgerError     the ledger can't be opened, read or written                    (exit code 1)

An ``InputError`` carries *all* problems found, so that a user mends a config once, not once a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it stands, and what is wrong and how to mend it."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class PotstillError(Exception):
    """Base class of all errors that potstill raises on purpose."""

    exit_code = 1


class InputError(PotstillError):
    """The user's input can't work; nothing was started and nothing was spent."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]]]:
        # Exceptions cross process borders in Ray; the default rebuilds from args, which is the joined text.
        return type(self), (self.problems,)


class StageError(PotstillError):
    """A stage ran but could not give what the next one needs."""


class TeacherError(PotstillError):
    """The teacher's model could not be loaded or asked."""


class TeacherStopped(TeacherError):
    """No further request may be sent: the budget is reached or the endpoint lets nothing through."""


class LedgerError(PotstillError):
    """The ledger can't be opened, read or written."""
