"""MLflow's database after a killed job: its journal must be rolled back before the database can be read."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from jobs.tracking.server import _foreign_database


def test_a_database_that_a_killed_job_left_half_written_is_rolled_back_and_used(tmp_path: Path) -> None:
    path, killed = tmp_path / "mlflow.db", tmp_path / "killed" / "mlflow.db"
    killed.parent.mkdir()
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("CREATE TABLE alembic_version (x TEXT)")
        connection.execute("CREATE TABLE experiments (x TEXT)")
        connection.execute("PRAGMA cache_size = 1")  # so that the transaction reaches the file before it is committed
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO experiments VALUES (?)", [("x" * 1000,)] * 500)
        for name in ("mlflow.db", "mlflow.db-journal"):
            shutil.copy(tmp_path / name, killed.parent / name)
    connection.close()
    assert _foreign_database(killed) is None
    with sqlite3.connect(killed) as connection:
        assert connection.execute("SELECT count(*) FROM experiments").fetchone() == (0,)
    connection.close()
