"""What every stage needs, put together once: config, task, data, the run's folder, terminal, tracker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from actors.backends.identity import identify
from jobs.run import data as loading
from jobs.run.folder import Run, name_run
from jobs.runtime import torch_worker as bench
from jobs.runtime.terminal import Terminal
from jobs.tracking.tracker import NullTracker, Tracker
from potstill.config import Config
from potstill.labels.questions import Questions
from potstill.prompts.render import choose_renderer
from potstill.strategies import STRATEGIES, Strategy
from potstill.task import Task, TaskData
from potstill.teacher import Teacher


@dataclass(frozen=True)
class Job:
    """The context of a running job. ``embed``: groups of texts to arrays (``jobs/runtime/torch_worker.py``)."""

    config: Config
    task: Task
    data: TaskData
    run: Run
    terminal: Terminal
    tracker: Tracker
    verbose: bool = False
    embed: Callable[..., list[np.ndarray]] = lambda *groups: bench.embed(*groups)

    @cached_property
    def teacher(self) -> Teacher:
        """Who the teacher is and how prompts are put to it. Raises ``TeacherError`` if a local model is missing."""
        identity = identify(self.config.teacher)
        return Teacher(identity, choose_renderer(self.config.teacher.renderer, identity))

    @cached_property
    def strategy(self) -> Strategy:
        """Where the texts come from."""
        return STRATEGIES[self.config.augment.strategy]

    @cached_property
    def questions(self) -> Questions:
        """What the teacher is asked about a text's class."""
        config = self.config
        return Questions(self.task, self.data.seeds, config.relabel, self.teacher, config.seed)

    @property
    def labels(self) -> list[str]:
        """Class names in label order."""
        return list(self.task.labels)

    def describe(self) -> None:
        """Write config and task into the run's folder, which is to be understood without what they were read from."""
        self.run.write_config(self.config)
        self.run.write_json("task", self.task.model_dump(mode="json"))


def prepare(config: Config, terminal: Terminal, verbose: bool = False, run: Run | None = None) -> Job:
    """Read task and data. Starts nothing; raises ``InputError`` with all problems.

    Without a ``run`` it is found by its name, which the teacher's weights are part of: ``TeacherError`` where they
    are not there.
    """
    task, data = loading.load(config)
    if run is None:
        run = Run(config.storage, name_run(config, task, data, identify(config.teacher).weights_digest))
    return Job(config, task, data, run, terminal, NullTracker(), verbose)
