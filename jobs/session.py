"""What every command does between its plan and its work: connect, check the cluster, describe the run, start tracking."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from jobs import preflight
from jobs.run.job import Job
from jobs.runtime import cluster
from jobs.tracking.tracker import open_tracker
from potstill.study.config import StudyConfig


@contextlib.contextmanager
def session(
    job: Job,
    command: str,
    stages: Sequence[str],
    *,
    check: Callable[[], object] = lambda: None,
    describe: bool = True,
    study: StudyConfig | None = None,
) -> Iterator[Job]:
    """The job with its tracker, connected to the cluster.

    ``check`` runs after the cluster check, before anything is written. ``describe``: write config and task into the run's
    folder, so that stage commands can use it. With ``study``, ``job`` is any job of the study
    in the study's folder; the study describes that folder itself. Raises ``InputError``.
    """
    with cluster.connect(job.verbose):
        preflight.check_cluster(job, stages)
        check()
        if describe and study is None:
            job.describe()
        with open_tracker(
            job.config,
            command=command,
            task_name=job.task.name if study is None else study.name,
            run_dir=job.run.path,
            run_digest=job.run.digest,
            warn=job.terminal.warn,
            content=None if study is None else study.model_dump(mode="json"),
        ) as tracker:
            tracker.tags({"potstill.run": job.run.name})
            yield replace(job, tracker=tracker)
