"""Checkpoints in Ray Train's storage.

A checkpoint counts only when every worker's files are stored (``save``). If that fails, for instance on a full disk,
training continues and the last good checkpoint stays.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from actors.process_group import ProcessGroup


def save(group: ProcessGroup, place: RayCheckpoints, step: int, write: Callable[[str], str | None]) -> str | None:
    """Make a checkpoint of ``step``. Returns None, or on all ranks alike why it failed.

    ``write`` puts this rank's files into a folder and returns what went wrong. It runs on every rank and must not
    raise, since the other ranks would wait for this one.
    """
    name = group.agree(f"checkpoint_{step:07d}_{uuid.uuid4().hex[:8]}")
    with tempfile.TemporaryDirectory(prefix="potstill-checkpoint-", ignore_cleanup_errors=True) as scratch:
        problem = write(scratch)
        if problem is None:
            try:
                place.upload(scratch, name)
            except OSError as error:
                problem = str(error)
    problem = next((found for found in group.gather(problem) if found is not None), None)
    if problem is None:
        place.accept(name, step)
    elif group.rank == 0:
        place.reject(name)
    return problem


class RayCheckpoints:
    """The checkpoints of a Ray Train fit. Every rank has one and makes the same calls, except ``upload`` and ``reject``.

    The files are stored before ``ray.train.report``, which then only names them: an error inside ``report`` on one
    worker would leave the others waiting, and a half-stored checkpoint as the last one.
    """

    def __init__(self) -> None:
        self._stored: Any = None

    def fetch(self) -> AbstractContextManager[str | None]:
        """A local folder with the last checkpoint, all ranks' files in it; None if there is none.

        On a shared file system it is the stored folder itself, else a copy.
        """
        from ray import train

        last = train.get_checkpoint()
        return contextlib.nullcontext() if last is None else last.as_directory()

    def preempted(self) -> bool:
        """Whether Ray announced that a worker's node will be taken away. All ranks ask equally often."""
        from ray import train

        ask = getattr(train, "get_preemption_info", None)  # not in every supported Ray
        return ask is not None and ask() is not None

    def upload(self, scratch: str, name: str) -> None:
        """Store this rank's files, in ``scratch``, under ``name`` in the fit's folder. Raises ``OSError``."""
        from ray.train import Checkpoint

        self._stored = self._storage().persist_current_checkpoint(Checkpoint.from_directory(scratch), name)

    def accept(self, name: str, step: int) -> None:
        """Make ``name`` the last checkpoint, once all ranks' files are stored. A barrier."""
        from ray import train
        from ray.train.v2.api.report_config import CheckpointUploadMode

        train.report({"step": step}, checkpoint=self._stored, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    def reject(self, name: str) -> None:
        """Delete what was stored under ``name``. Called on rank 0 only."""
        storage = self._storage()
        with contextlib.suppress(OSError):
            storage.storage_filesystem.delete_dir(storage.build_checkpoint_path_from_name(name))

    @staticmethod
    def _storage() -> Any:
        from ray import train

        return train.get_context().get_storage()
