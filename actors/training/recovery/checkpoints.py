"""Where checkpoints go and come from: Ray Train's storage, a folder, or nowhere.

A checkpoint counts only when every worker's files of it are stored (``save``). Where that fails, for lack of
space say, training goes on and the last good checkpoint stays: nobody wants to lose an hour's training for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from actors.process_group import ProcessGroup


class Checkpoints(Protocol):
    """A place for checkpoints. Every rank has one and makes the same calls, ``upload`` and ``reject`` aside."""

    def fetch(self) -> AbstractContextManager[str | None]:
        """A local folder with the last checkpoint, all ranks' files in it; None if there is none."""
        ...

    def preempted(self) -> bool:
        """Whether a worker's node is about to be taken away. All ranks ask equally often."""
        ...

    def upload(self, scratch: str, name: str) -> None:
        """Store this rank's files, in ``scratch``, under ``name``. Raises ``OSError``."""
        ...

    def accept(self, name: str, step: int) -> None:
        """All ranks' files are stored: this is the last checkpoint from now on."""
        ...

    def reject(self, name: str) -> None:
        """Remove what is stored under ``name``; rank 0 alone is asked to."""
        ...


def save(world: ProcessGroup, place: Checkpoints, step: int, write: Callable[[str], str | None]) -> str | None:
    """Make a checkpoint of ``step``. Returns None, or on all ranks alike why there is none.

    ``write`` puts this rank's files into a folder and returns what went wrong; it runs on every rank, and
    must not raise, since the others would wait for this one.
    """
    name = world.agree(f"checkpoint_{step:07d}_{uuid.uuid4().hex[:8]}")
    with tempfile.TemporaryDirectory(prefix="potstill-checkpoint-", ignore_cleanup_errors=True) as scratch:
        problem = write(scratch)
        if problem is None:
            try:
                place.upload(scratch, name)
            except OSError as error:
                problem = str(error)
    problem = next((found for found in world.gather(problem) if found is not None), None)
    if problem is None:
        place.accept(name, step)
    elif world.rank == 0:
        place.reject(name)
    return problem


class NoCheckpoints:
    """For training that is short, or starts anew where it was stopped."""

    def fetch(self) -> AbstractContextManager[str | None]:
        """Nothing."""
        return contextlib.nullcontext()

    def preempted(self) -> bool:
        """Never."""
        return False

    def upload(self, scratch: str, name: str) -> None:
        """Nowhere to."""

    def accept(self, name: str, step: int) -> None:
        """Nothing to remember."""

    def reject(self, name: str) -> None:
        """Nothing to remove."""


class FolderCheckpoints:
    """Checkpoints in a folder that all ranks share; only the last accepted one is kept. Works without Ray."""

    def __init__(self, folder: str, rank: int = 0) -> None:
        self.folder, self._rank = folder, rank
        os.makedirs(folder, exist_ok=True)

    @contextlib.contextmanager
    def fetch(self) -> Iterator[str | None]:
        """The folder itself of the last checkpoint."""
        try:
            with open(f"{self.folder}/last") as file:
                yield f"{self.folder}/{file.read()}"
        except FileNotFoundError:
            yield None

    def preempted(self) -> bool:
        """Nobody gives notice here."""
        return False

    def upload(self, scratch: str, name: str) -> None:
        """Copy."""
        shutil.copytree(scratch, f"{self.folder}/{name}", dirs_exist_ok=True)

    def accept(self, name: str, step: int) -> None:
        """Point to it, then forget the one before."""
        if self._rank != 0:
            return
        with open(f"{self.folder}/last.new", "w") as file:
            file.write(name)
        os.replace(f"{self.folder}/last.new", f"{self.folder}/last")
        for other in os.listdir(self.folder):
            if other.startswith("checkpoint_") and other != name:
                self.reject(other)

    def reject(self, name: str) -> None:
        """Delete."""
        shutil.rmtree(f"{self.folder}/{name}", ignore_errors=True)


class RayCheckpoints:
    """Checkpoints in the storage of a Ray Train fit, told of through ``ray.train.report``.

    The files are stored before the report, which then only names them: an error inside of ``report`` on one
    worker would leave the others waiting, and a half-stored checkpoint as the last one.
    """

    def __init__(self) -> None:
        self._stored: Any = None

    def fetch(self) -> AbstractContextManager[str | None]:
        """Ray's last checkpoint: where it is on a shared file system, a copy from elsewhere."""
        from ray import train

        last = train.get_checkpoint()
        return contextlib.nullcontext() if last is None else last.as_directory()

    def preempted(self) -> bool:
        """Ray's word on it, the same on all ranks."""
        from ray import train

        ask = getattr(train, "get_preemption_info", None)  # not in every Ray that we work with
        return ask is not None and ask() is not None

    def upload(self, scratch: str, name: str) -> None:
        """Into the fit's folder."""
        from ray.train import Checkpoint

        self._stored = self._storage().persist_current_checkpoint(Checkpoint.from_directory(scratch), name)

    def accept(self, name: str, step: int) -> None:
        """Report it; a barrier."""
        from ray import train
        from ray.train.v2.api.report_config import CheckpointUploadMode

        train.report({"step": step}, checkpoint=self._stored, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    def reject(self, name: str) -> None:
        """Delete what was stored of it."""
        storage = self._storage()
        with contextlib.suppress(OSError):
            storage.storage_filesystem.delete_dir(storage.build_checkpoint_path_from_name(name))

    @staticmethod
    def _storage() -> Any:
        from ray import train

        return train.get_context().get_storage()
