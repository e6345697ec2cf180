"""URIs that are not a ledger or not writable give one line that names the field and the fix."""

import contextlib
import os
import pwd
import re
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa

from actors.ledger.database import LedgerDatabase, NoLedgerError, redact
from actors.ledger.store import LedgerStore
from potstill.errors import LedgerError
from potstill.rows import Message, Request, Response, Sampling

REQUESTS = [
    Request("generate", "t", "s", "list", "openai", "m", None, (Message("prompt", "hi"),), Sampling(), occurrence=i)
    for i in range(1000)
]


def complaint(call):
    """Return the one-line error message."""
    with pytest.raises(LedgerError) as caught:
        call()
    text = str(caught.value)
    assert text.startswith("ledger.uri = '")
    assert "\n" not in text
    return text


@contextlib.contextmanager
def small_disk(megabytes):
    """Mount a real file system of that size; needs root."""
    folder = Path(tempfile.mkdtemp(prefix="potstill-disk-"))
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    try:
        if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root's rights")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    finally:
        folder.rmdir()


@contextlib.contextmanager
def without_root():
    """Root may write everywhere, so run as the user ``nobody`` in a folder that this user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="potstill-mine-"))
    folder.chmod(0o755)
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    try:
        yield folder, user
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def acting_as(user):
    """Change only the effective user, which can be changed back."""
    if user is None:
        yield
        return
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "notes.db"
    path.write_text("just some text that is long enough to be no database header at all")
    for create in (True, False):
        text = complaint(lambda: LedgerDatabase(f"sqlite:///{path}", create))  # noqa: B023
        assert text.endswith(
            "can't be opened as a ledger: file is not a database; it is not a ledger; name another file"
        )
    assert path.read_text().startswith("just some text")


def test_a_database_of_something_else_is_left_as_it_is(tmp_path):
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("create table experiments (id int)")
    before = path.read_bytes()
    for create in (True, False):
        text = complaint(lambda: LedgerDatabase(f"sqlite:///{path}", create))  # noqa: B023
        assert "is not a ledger but another database (it has a table 'experiments'); name another one" in text
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_in_postgresql_a_ledger_coexists_with_other_tables_but_never_adopts_them(postgres_uri):
    engine = sa.create_engine(postgres_uri)
    with engine.begin() as connection:
        connection.execute(sa.text("create table experiments (id int)"))
    LedgerDatabase(postgres_uri).close()
    with engine.begin() as connection:
        connection.execute(sa.text("drop table meta"))
        connection.execute(sa.text("create table meta (key text, value text, more text)"))
    assert "has a table 'claims'" in complaint(lambda: LedgerDatabase(postgres_uri))
    engine.dispose()


def test_a_reader_does_not_create_a_missing_ledger(uri, tmp_path):
    with pytest.raises(NoLedgerError, match=r"there is no ledger.*; name the one that your jobs use"):
        LedgerDatabase(uri, create=False)
    assert not (tmp_path / "deep").exists()
    LedgerDatabase(uri).close()
    LedgerDatabase(uri, create=False).close()


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
def test_memory_keeps_nothing(uri):
    assert complaint(lambda: LedgerDatabase(uri)).endswith("nothing would be kept; name one: sqlite:///FILE")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("ledger.db", "Could not parse SQLAlchemy URL.*; a ledger is sqlite:///FILE or postgresql"),
        ("nonsense://x", "Can't load plugin.*; a ledger is sqlite:///FILE or postgresql"),
        ("sqlite:////dev/null/ledger.db", "can't be opened as a ledger: .*Not a directory|File exists"),
        ("postgresql://me:secret@127.0.0.1:1/x", r"can't be opened as a ledger: .*connection .*127.0.0.1.*refused"),
    ],
)
def test_invalid_uris(uri, said):
    text = complaint(lambda: LedgerDatabase(uri))
    assert re.search(said, text), text
    assert "secret" not in text


def test_passwords_are_not_shown():
    assert redact("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"
    assert redact("no uri at all") == "no uri at all"


def test_a_nearly_full_disk_is_reported_before_anything_is_paid():
    with small_disk(3) as folder:
        database = LedgerDatabase(f"sqlite:///{folder}/ledger.db")
        text = complaint(database.check_writable)
        assert re.search(r"its disk has only \d MiB left, answers would be lost; free some space there", text)
        database.close()


def test_a_full_disk_loses_nothing_that_was_committed():
    with small_disk(3) as folder:
        uri = f"sqlite:///{folder}/ledger.db"
        store = LedgerStore(uri)
        committed = []

        def fill():
            for start in range(0, len(REQUESTS), 50):
                part = REQUESTS[start : start + 50]
                store.commit(part, [Response(request.request_id, "x" * 4000) for request in part])
                committed.extend(request.request_id for request in part)

        assert "can't be written: database or disk is full; free some space there" in complaint(fill)
        assert 0 < len(committed) < len(REQUESTS)
        assert store.count_known(committed) == len(committed)
        assert "full" in complaint(store.database.check_writable)
        store.close()
        (folder / "ballast").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=60m", folder], check=True)
        again = LedgerStore(uri)
        assert {response.request_id for response in again.fetch([r.request_id for r in REQUESTS])} == set(committed)
        again.database.check_writable()
        again.close()


def test_a_full_disk_for_a_new_ledger():
    with small_disk(1) as folder:
        with contextlib.suppress(OSError), open(folder / "ballast", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        text = complaint(lambda: LedgerDatabase(f"sqlite:///{folder}/ledger.db"))
        assert re.search("(disk is full|disk I/O error); .*free some space there", text)


def test_read_only_disks():
    with small_disk(1) as folder:
        LedgerDatabase(f"sqlite:///{folder}/ledger.db").close()
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        for place in ("ledger.db", "new.db"):
            text = complaint(lambda: LedgerDatabase(f"sqlite:///{folder}/{place}"))  # noqa: B023
            assert "unable to open database file; give yourself write access to the file and its folder" in text
        text = complaint(lambda: LedgerDatabase(f"sqlite:///{folder}/deep/new.db"))
        assert "Read-only file system" in text
        assert text.endswith("name a file on a writable disk")


def test_files_and_folders_of_another_user():
    with without_root() as (folder, user):
        LedgerDatabase(f"sqlite:///{folder}/ledger.db").close()
        (folder / "ledger.db").chmod(0o444)
        folder.chmod(0o555)
        with acting_as(user):
            for place in ("ledger.db", "new.db", "deep/new.db"):
                text = complaint(lambda: LedgerDatabase(f"sqlite:///{folder}/{place}"))  # noqa: B023
                assert "; give yourself write access to the file and its folder, or name another file" in text
        folder.chmod(0o777)  # now SQLite can open it, but not write
        with acting_as(user):
            database = LedgerDatabase(f"sqlite:///{folder}/ledger.db")
            assert "readonly database; give yourself write access" in complaint(database.check_writable)
            database.close()


def test_the_check_leaves_a_writable_ledger_unchanged(uri):
    database = LedgerDatabase(uri)
    database.check_writable()
    with database.read() as connection:
        assert connection.execute(sa.text("select key, value from meta")).all() == [("schema_version", "1")]
    database.close()


def test_a_ledger_that_is_kept_locked(tmp_path, monkeypatch):
    monkeypatch.setattr("actors.ledger.database.LOCK_WAIT_S", 0)
    uri = f"sqlite:///{tmp_path}/ledger.db"
    one, two = LedgerDatabase(uri), LedgerDatabase(uri)
    with one.write():
        assert "database is locked; another process has locked it" in complaint(two.check_writable)
    two.check_writable()
    one.close()
    two.close()
