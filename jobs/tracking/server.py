"""The MLflow server: absolute URIs, preflight checks, request time-outs and error classes.

``problems`` takes about 5 s at worst. With MLflow's defaults (120 s per request, 7 retries with back-off) a job would hang
for many minutes on a server that is down, so every call of a job runs inside ``short_requests``: one try of 10 s. What
fails is kept and sent later (``jobs/tracking/outbox.py``).
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from jobs.runtime.paths import absolute_uri
from potstill.config import TrackingConfig, home
from potstill.errors import InputError, PotstillError, Problem

if TYPE_CHECKING:
    from mlflow import MlflowClient

OFF = "none"
REQUEST_TIMEOUT_S = 10
PREFLIGHT_TIMEOUT_S = 5.0
# A file takes 0.3 s, on a busy machine many times that.
LOCAL_TIMEOUT_S = 30.0
ALLOWED = "allowed: sqlite:////path/mlflow.db, http(s)://host:port, postgresql://..., mysql://..., databricks, or none"

_DATABASES = {"postgresql", "mysql", "mssql"}
_ARTIFACT_PACKAGES = {
    "s3": "boto3",
    "gs": "google.cloud.storage",
    "wasbs": "azure.storage.blob",
    "abfss": "azure.storage.filedatalake",
}
# HTTP statuses of requests that would fail again; all others count as an outage.
_REFUSALS = {400, 404, 409, 422}


class TrackingError(PotstillError):
    """MLflow could not be reached or did not answer. Its entries are kept."""


class RefusedError(PotstillError):
    """MLflow refused a request and would refuse it again."""


# Passwords may contain @, / and ?, quoted or not: the mask ends at the last @ before the query, if there is one. Paths of
# HTTP addresses and anything like a port stay.
_UP_TO_AT = r"(?:(?:(?!\?\w+=)[^\s'\"])+|[^\s'\"]+)@"
_IN_HTTP = re.compile(r"(https?://[^/@:\s]*):(?!\d+(?:[/?#\s]|$))(?:[^/\s'\"?]+@|" + _UP_TO_AT + ")")
_IN_DATABASE = re.compile(r"((?<!http)(?<!https)://[^/@:\s]*):" + _UP_TO_AT)
_IN_QUERY = re.compile(r"([?&]\w*(?:password|passwd|pwd)=)[^&#\s'\"]+", re.IGNORECASE)


def redact(text: str, mask: str = "***") -> str:
    """``text`` with passwords inside URIs replaced by ``mask``; removed if it is empty."""
    for pattern in (_IN_HTTP, _IN_DATABASE):
        text = pattern.sub(rf"\1:{mask}@" if mask else r"\1@", text)
    return _IN_QUERY.sub(rf"\g<1>{mask}", text)


def one_line(error: BaseException, limit: int = 200) -> str:
    """An exception's message on one line, cut and without passwords."""
    text = " ".join(redact(str(error) or type(error).__name__).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


_MEANINGS = (
    (
        r"Name or service not known|Failed to resolve|nodename nor servname|Temporary failure in name resolution",
        "its host name is unknown",
    ),
    (r"Connection refused", "connection refused, nothing listens there"),
    (r"Connection aborted|Connection reset|RemoteDisconnected|Broken pipe", "the connection broke"),
    (r"No route to host|Network is unreachable", "its network can't be reached"),
    (r"timed out|[Tt]imeout", "no answer in time"),
    (
        r"\b401\b|Unauthorized|UNAUTHENTICATED",
        "it requires a log-in (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN)",
    ),
    (r"\b403\b|PERMISSION_DENIED", "it refuses this user, or this host name (mlflow server --allowed-hosts)"),
    (
        r"out-of-date database schema|mlflow db upgrade",
        "its schema belongs to another MLflow version (back it up, then run `mlflow db upgrade`)",
    ),
    (r"error code 404", "it is not an MLflow server"),
)


def meaning(error: BaseException) -> str:
    """Why a server can't be used: in a few words if the error is a common one."""
    if isinstance(error, ImportError):
        return f"its driver is not installed ({one_line(error)})"
    for pattern, words in _MEANINGS:
        if re.search(pattern, str(error)):
            return words
    return one_line(error)


@contextmanager
def short_requests(timeout_s: int = REQUEST_TIMEOUT_S) -> Iterator[None]:
    """One try of ``timeout_s`` seconds for every MLflow request inside, unless the user set other limits.

    The environment is restored afterwards, so that later processes don't inherit the short limits.
    """
    wanted = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # otherwise two lines per stage
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def mlflow_errors() -> Iterator[None]:
    """Turn all exceptions of MLflow into ``RefusedError`` (would fail again) or ``TrackingError`` (an outage).

    MLflow does not wrap errors of its database driver, HTTP client and artifact clients, and any of them may be
    installed; so every ``Exception`` is caught and classified here.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except PotstillError:
        raise
    except MlflowException as error:
        # An answer not from MLflow (a proxy without its server sends 404) is an outage as well.
        if error.get_http_status_code() in _REFUSALS and "failed with error code" not in str(error):
            raise RefusedError(one_line(error)) from error
        raise TrackingError(meaning(error)) from error
    except (ImportError, PermissionError, FileNotFoundError, NotADirectoryError) as error:
        # This machine can't write to the artifact store; waiting would not help.
        raise RefusedError(meaning(error)) from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, OSError):  # some of requests' errors are both
            raise TrackingError(meaning(error)) from error
        raise RefusedError(f"{type(error).__name__}: {one_line(error)}") from error
    except Exception as error:
        raise TrackingError(meaning(error)) from error


def client(uri: str) -> MlflowClient:
    """A client for ``uri``. The first client of a new SQLite file creates its schema (about 3 s)."""
    from mlflow import MlflowClient

    uri = absolute_uri(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def open_experiment(mlflow_client: MlflowClient, tracking: TrackingConfig, name: str) -> str:
    """The id of experiment ``name``, created if missing. Raises ``InputError`` if it was deleted.

    The artifact location is explicit: MLflow's default for a database is the working directory.
    """
    from mlflow.exceptions import MlflowException

    experiment = mlflow_client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(mlflow_client.create_experiment(name, artifact_location=artifact_location(tracking)))
        except MlflowException:
            # Another job may have created it meanwhile.
            experiment = mlflow_client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise InputError([_deleted(name)])
    return str(experiment.experiment_id)


def artifact_location(tracking: TrackingConfig) -> str | None:
    """Where a new experiment stores its artifacts; ``None``: the server decides."""
    if tracking.artifacts:
        is_url = "://" in tracking.artifacts
        return tracking.artifacts if is_url else Path(tracking.artifacts).expanduser().absolute().as_uri()
    scheme = _scheme(tracking.uri)
    return (home() / "mlartifacts").as_uri() if scheme in {"sqlite", *_DATABASES} else None


def _scheme(uri: str) -> str:
    """``postgresql`` of ``postgresql+psycopg://...``."""
    return uri.partition(":")[0].partition("+")[0]


def problems(tracking: TrackingConfig, experiment: str | None = None) -> list[Problem]:
    """Problems that would prevent logging. Creates nothing; takes up to ``PREFLIGHT_TIMEOUT_S`` plus 2.5 s to import MLflow."""
    where = f"tracking.uri = {redact(tracking.uri)!r}"
    if tracking.uri == OFF:
        return []
    found = [*_artifact_problems(tracking), *_name_problems(tracking)]
    scheme = _scheme(tracking.uri)
    if scheme == "sqlite":
        message = _sqlite_problem(tracking.uri)
    elif scheme in _DATABASES:
        message = _answer(lambda: _connect_database(tracking.uri), where_to_look="the database")
    elif scheme in {"http", "https"}:
        message = (
            _answer(lambda: _ask(tracking.uri), where_to_look="the server")
            if urlsplit(tracking.uri).hostname
            else f"has no host; {ALLOWED}"
        )
    elif scheme in {"databricks", "databricks-uc", "uc"}:
        message = _answer(lambda: _ask(tracking.uri), where_to_look="the workspace")
    elif scheme == "file" or ":" not in tracking.uri:
        message = f"MLflow 3 does not support file stores; use a database, such as sqlite:///{home()}/mlflow.db"
    else:
        message = f"is not an MLflow tracking URI; {ALLOWED}"
    if message:
        return [Problem(where, message), *found]
    name = experiment or tracking.experiment
    if name and (scheme != "sqlite" or _sqlite_path(tracking.uri).exists()):
        try:
            if _is_deleted(tracking.uri, name):
                found.append(_deleted(name))
        except (TrackingError, RefusedError) as error:
            found.append(Problem(where, str(error)))
    return found


def _deleted(name: str) -> Problem:
    return Problem(
        f"tracking.experiment = {name!r}",
        "was deleted in MLflow; restore it (mlflow experiments restore) or choose another name",
    )


def _is_deleted(uri: str, name: str) -> bool:
    with short_requests(), mlflow_errors():
        experiment = client(uri).get_experiment_by_name(name)
    return experiment is not None and experiment.lifecycle_stage != "active"


def _name_problems(tracking: TrackingConfig) -> list[Problem]:
    name = tracking.register_as
    if name is not None and (not name.strip() or re.search(r"[/:]", name)):
        return [
            Problem(f"tracking.register_as = {name!r}", "a registered model's name must not be empty or contain / or :")
        ]
    return []


def _artifact_problems(tracking: TrackingConfig) -> list[Problem]:
    location = artifact_location(tracking)
    if location is None:
        return []
    where = f"tracking.artifacts = {redact(location)!r}"
    scheme = location.partition(":")[0]
    if scheme == "file":
        complaint = unwritable(Path(urlsplit(location).path))
        return [Problem(where, complaint)] if complaint else []
    package = _ARTIFACT_PACKAGES.get(scheme)
    if package and not _is_installed(package):
        return [Problem(where, f"needs the package {package.replace('.', '-')}, which is not installed")]
    return []


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # a parent of a dotted name is missing
        return False


def unwritable(folder: Path) -> str | None:
    """Why ``folder`` can't be created or written; ``None`` if it can."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"{nearest} is a file, not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"no permission to write in {nearest}"
    return None


def _sqlite_path(uri: str) -> Path:
    return Path(absolute_uri(uri).removeprefix("sqlite:///"))


def _sqlite_problem(uri: str) -> str | None:
    if not uri.startswith("sqlite:///") or uri.startswith("sqlite:///:memory:") or uri == "sqlite:///":
        return f"names no database file (an in-memory one can't be shared); give a path, such as sqlite:///{home()}/mlflow.db"
    path = _sqlite_path(uri)
    complaint = unwritable(path.parent)
    if complaint:
        return complaint
    if path.is_dir():
        return "is a folder; give a file in it, such as mlflow.db"
    if not path.exists():
        return None
    if not os.access(path, os.R_OK | os.W_OK):
        return f"no permission to read and write {path}"
    if path.stat().st_size == 0:
        return None
    return _foreign_database(path) or _answer(
        lambda: _ask(uri), "the database (is another program holding it?)", LOCAL_TIMEOUT_S
    )


def _foreign_database(path: Path) -> str | None:
    """Detect another program's file before MLflow adds about fifty tables to it.

    Opened for writing: an unfinished transaction of a killed job must be rolled back before reading.
    """
    import sqlite3

    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=PREFLIGHT_TIMEOUT_S)
        ) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        return f"can't be read as an SQLite database: {error}"
    if tables and not {"alembic_version", "experiments"} <= tables:
        return f"is another program's database (tables {', '.join(sorted(tables)[:3])}); give MLflow a file of its own"
    return None


def _ask(uri: str) -> None:
    with short_requests(int(PREFLIGHT_TIMEOUT_S)):
        client(uri).search_experiments(max_results=1)


def _connect_database(uri: str) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _answer(call: Callable[[], Any], where_to_look: str, timeout_s: float = PREFLIGHT_TIMEOUT_S) -> str | None:
    """Why ``call`` failed or timed out; ``None`` if it succeeded.

    It runs in a thread that is abandoned on a time-out, since a host name look-up has none.
    """
    from mlflow import MlflowClient  # noqa: F401  (its 2.5 s must not count)

    outcome: list[str | None] = []

    def attempt() -> None:
        try:
            with mlflow_errors():
                call()
            outcome.append(None)
        except PotstillError as error:
            outcome.append(f"can't be used: {error}; check {where_to_look}, or set tracking.uri=none")

    thread = threading.Thread(target=attempt, name="mlflow-preflight", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        late = f"no answer within {timeout_s:.0f} s"
        return f"{late}; check {where_to_look} and the network, or set tracking.uri=none"
    return outcome[0]
