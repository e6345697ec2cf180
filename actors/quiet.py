"""Sends the output of a worker process to a file: Ray, DeepSpeed and C libraries would clutter the user's terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def redirect_output(folder: str | None, log: logging.Logger) -> Iterator[None]:
    """Send this process's stdout and stderr, C libraries included, and ``log`` to ``<folder>/worker-<rank>.log``.

    Does nothing if ``folder`` is None.
    """
    if folder is None:
        yield
        return
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"worker-{os.environ.get('RANK', '0')}.log")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    kept = [os.dup(1), os.dup(2)]
    with open(path, "a") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            log.removeHandler(handler)
