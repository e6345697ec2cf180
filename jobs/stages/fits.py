"""Where a fit of Ray Train keeps its checkpoints, so that the same command goes on after its driver died.

Ray Train goes on from the last checkpoint of the fit of the same name and place. So the name is the digest of what is
trained, as long as nobody else trains the same there: that is what a lock on a file of the folder tells, which the
system takes away from a process that dies. Where storage knows no locks (``s3://``), every fit has a name of its own
and starts from the beginning.
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
    """A name below ``storage`` that is ours inside of the block: ``key``, or one of its own where that can't be had.

    Checkpoints under it are deleted at the end of a block that went well: every arm has its export, and an optimizer's
    state is twice a model. After an error they stay, for the next try.
    """
    with _lock(storage, key) as ours:
        name = key if ours else f"{key}-{uuid.uuid4().hex[:8]}"
        if ours and not _usable(f"{storage}/{name}"):
            clean(f"{storage}/{name}")
        yield name
        clean(f"{storage}/{name}")


def clean(folder: str) -> None:
    """Delete a fit's checkpoints; the record of them goes first, since Ray takes one of what is gone for an error."""
    filesystem, root = url_to_fs(folder)
    for path in (f"{root}/{_SNAPSHOT}", *filesystem.glob(f"{root}/checkpoint_*")):
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


@contextlib.contextmanager
def _lock(storage: str, key: str) -> Iterator[bool]:
    """Whether the fit is ours alone; ``False`` where another process has it or nobody can say."""
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
    """Whether Ray can go on from what is there: of its own version, and every checkpoint that it tells of."""
    import ray

    try:
        with open(f"{folder}/{_SNAPSHOT}") as file:
            told = json.load(file)
        names = [result["checkpoint_dir_name"] for result in told["checkpoint_results"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return told.get("ray_version") == ray.__version__ and all(os.path.isdir(f"{folder}/{name}") for name in names)
