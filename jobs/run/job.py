"""The context of a job, built once and passed to every stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from actors.backends.identity import identify
from jobs.run.data import load
from jobs.run.folder import Run, name_run
from jobs.runtime import torch_worker
from jobs.runtime.terminal import Terminal
from jobs.tracking.tracker import NullTracker, Tracker
from potstill.config import Config, EmbeddedTeacher
from potstill.labels.questions import Questions
from potstill.prompts.render import choose_renderer
from potstill.strategies import STRATEGIES, Strategy
from potstill.task import Task, TaskData
from potstill.teacher import Teacher

FREE_TESTS = 200


@dataclass(frozen=True)
class Job:
    """A running job. ``embed``: groups of texts to arrays (``jobs/runtime/torch_worker.py``)."""

    config: Config
    task: Task
    data: TaskData
    run: Run
    terminal: Terminal
    tracker: Tracker
    verbose: bool = False
    embed: Callable[..., list[np.ndarray]] = lambda *groups: torch_worker.embed(*groups)

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher's identity and prompt renderer. Raises ``TeacherError`` if a local model is missing."""
        identity = identify(self.config.teacher)
        return Teacher(identity, choose_renderer(self.config.teacher.renderer, identity))

    @cached_property
    def strategy(self) -> Strategy:
        """The source of the texts."""
        return STRATEGIES[self.config.augment.strategy]

    @cached_property
    def questions(self) -> Questions:
        """The questions about a text's class."""
        config = self.config
        return Questions(self.task, self.data.seeds, config.relabel, self.teacher, config.seed)

    @property
    def teacher_tests(self) -> int:
        """On how many test texts the teacher itself is scored."""
        wanted = self.config.evaluate.teacher
        if not self.config.relabel.enabled:
            return 0
        if wanted == "auto":
            wanted = FREE_TESTS if isinstance(self.config.teacher, EmbeddedTeacher) else 0
        return min(wanted, len(self.data.test))

    @property
    def labels(self) -> list[str]:
        """Class names in label order."""
        return list(self.task.labels)

    def describe(self) -> None:
        """Write config and task into the run's folder, so that it is complete without their files."""
        self.run.write_config(self.config)
        self.run.write_json("task", self.task.model_dump(mode="json"))


def prepare(config: Config, terminal: Terminal, verbose: bool = False, run: Run | None = None) -> Job:
    """Read task and data. Starts nothing; raises ``InputError`` with all problems.

    Without ``run``, its name is computed from the config and the teacher's weights; raises ``TeacherError`` if these
    are missing.
    """
    task, data = load(config)
    return Job(config, task, data, run or find_run(config, task, data), terminal, NullTracker(), verbose)


def find_run(config: Config, task: Task, data: TaskData, storage: str | None = None) -> Run:
    """The run of a config, in ``storage`` or the config's. Raises ``TeacherError`` if the teacher's weights are missing."""
    weights = identify(config.teacher).weights_digest
    return Run(storage or config.storage, name_run(config, task, data, weights))
