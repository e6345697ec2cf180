"""What a worker process writes, sent to a file: Ray's, DeepSpeed's and C libraries' words are not the user's."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def chatter_to(folder: str | None, log: logging.Logger) -> Iterator[None]:
    """Send what this process writes to its terminal, C libraries included, to ``<folder>/worker-<rank>.log``."""
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
