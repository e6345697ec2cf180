"""What every stage needs, put together once: config, task, data, the run's folder, terminal, tracker."""

from __future__ import annotations

from dataclasses import dataclass

from jobs import loading
from jobs.runs import Run, name_run
from jobs.terminal import Terminal
from jobs.tracking import NullTracker, Tracker
from potstill.config import Config
from potstill.task import Task, TaskData


@dataclass(frozen=True)
class Job:
    """The context of a running job."""

    config: Config
    task: Task
    data: TaskData
    run: Run
    terminal: Terminal
    tracker: Tracker
    verbose: bool = False

    @property
    def labels(self) -> list[str]:
        """Class names in label order."""
        return list(self.task.labels)


def prepare(config: Config, terminal: Terminal, verbose: bool = False) -> Job:
    """Read task and data. Starts nothing and writes nothing; raises ``InputError`` with all problems."""
    task, data = loading.load(config)
    run = Run(config.storage, name_run(config, task, data))
    return Job(config, task, data, run, terminal, NullTracker(), verbose)
