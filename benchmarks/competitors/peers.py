"""Virtual environments of the peers: each pins one release, is installed with pip and reused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Peer:
    """A compared library: its pip requirements and the script that drives it."""

    name: str
    requirements: tuple[str, ...]
    script: str


PEERS = (
    Peer("distilabel", ("distilabel[openai]==1.5.3", "requests"), "with_distilabel.py"),  # it imports requests
    Peer("curator", ("bespokelabs-curator==0.1.31",), "with_curator.py"),
)


def default_folder() -> Path:
    """Return the default folder, inside the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "potstill" / "benchmark-peers"


def python_of(peer: Peer, folder: Path) -> str:
    """Return the interpreter of a peer's environment, created if missing. Raises ``RuntimeError`` with pip's last line."""
    home = folder / "-".join((peer.name, *(one.partition("==")[2] for one in peer.requirements[:1])))
    python, finished = home / "bin" / "python", home / "installed"
    if finished.exists():
        return str(python)
    print(f"installing {', '.join(peer.requirements)} into {home}", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(home)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            said = [line for line in result.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise RuntimeError(f"{peer.name} can't be installed: {said[-1][:200]}")
    finished.touch()
    return str(python)
