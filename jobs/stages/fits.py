"""The name of a Ray Train fit, so that the same command resumes after its driver died.

Ray Train resumes from the last checkpoint of a fit with the same name and storage. The name is the digest of what is
trained, unless a file lock shows that another process is training it there; the system frees the lock of a dead process.
On storage without locks (``s3://``) every fit has its own name and starts from the beginning.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator

from fsspec.core import url_to_fs

_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's record of a fit's checkpoints


@contextlib.contextmanager
def claim(storage: str, key: str) -> Iterator[str]:
    """A name below ``storage`` that belongs to this process inside the block: ``key`` if it is free, else a new one.

    After a successful block its checkpoints are deleted: every arm has its export, and an optimizer's state is twice
    the size of the model. After an error they stay for the next try.
    """
    with _lock(storage, key) as ours:
        name = key if ours else f"{key}-{uuid.uuid4().hex[:8]}"
        if ours and not _usable(f"{storage}/{name}"):
            clean(f"{storage}/{name}")
        yield name
        clean(f"{storage}/{name}")


def clean(folder: str) -> None:
    """Delete a fit's checkpoints, Ray's record of them first: Ray fails if a recorded checkpoint is missing."""
    filesystem, root = url_to_fs(folder)
    for path in (f"{root}/{_SNAPSHOT}", *filesystem.glob(f"{root}/checkpoint_*")):
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


@contextlib.contextmanager
def _lock(storage: str, key: str) -> Iterator[bool]:
    """Whether this process has the lock on the fit; False if another has it or the storage has no locks."""
    if "://" in storage:
        yield False
        return
    os.makedirs(f"{storage}/{key}", exist_ok=True)
    descriptor = os.open(f"{storage}/{key}/lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except OSError:  # taken, or a file system without locks
            ours = False
        yield ours
    finally:
        os.close(descriptor)


def _usable(folder: str) -> bool:
    """Whether Ray can resume: its record is of the same version, and every recorded checkpoint is there."""
    import ray

    try:
        with open(f"{folder}/{_SNAPSHOT}") as file:
            record = json.load(file)
        names = [result["checkpoint_dir_name"] for result in record["checkpoint_results"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return record.get("ray_version") == ray.__version__ and all(os.path.isdir(f"{folder}/{name}") for name in names)
