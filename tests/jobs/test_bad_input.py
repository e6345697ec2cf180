"""Invalid endpoint and ledger settings give one error line before anything is asked or paid."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.__main__ import main
from jobs.run.job import prepare
from jobs.runtime.terminal import Terminal
from potstill.config import parse
from potstill.rows import Example
from tests.endpoint.client import Endpoint
from tests.support.command_line import MAILROOM, ROOT, command, environment, write_config

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process with that teacher and ledger: exit code, stdout, stderr."""

    def call(name: str, teacher: dict[str, Any], *more: str, **content: Any) -> tuple[int, str, str]:
        monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        config = write_config(tmp_path / "config.yaml", {"task": str(MAILROOM), "teacher": teacher, **content})
        monkeypatch.setattr(sys, "argv", ["potstill", name, config, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int | None)
        shown = capsys.readouterr()
        return code or 0, shown.out, shown.err

    return call


def refuse(run: Run, endpoint: Endpoint, teacher: dict[str, Any], **content: Any) -> str:
    """The one error of ``potstill generate``; checks that the endpoint received nothing."""
    before = len(endpoint.book())
    code, _, err = run("generate", teacher, "--yes", **content)
    assert code == 2, err
    assert len(endpoint.book()) == before
    return one_line(err)


def one_line(err: str) -> str:
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def openai(endpoint: Endpoint, **changes: Any) -> dict[str, Any]:
    settings = {"kind": "openai", "model": "scripted-1", "base_url": endpoint.base_url, "api_key_env": ""}
    return {**settings, **changes}


@pytest.mark.parametrize("value", [None, "", "  "], ids=["missing", "empty", "blank"])
def test_no_key(run: Run, endpoint: Endpoint, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    assert refuse(run, endpoint, openai(endpoint, api_key_env="MY_KEY")) == (
        "teacher.api_key_env = 'MY_KEY': no such environment variable, or it is empty; set it to the endpoint's key, "
        "or set api_key_env to '' for a server that needs none"
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("concurrency", 0, "teacher.concurrency = 0: Input should be greater than or equal to 1"),
        ("budget_usd", 0, "teacher.budget_usd = 0: Input should be greater than 0"),
        ("requests_per_minute", 0, "teacher.requests_per_minute = 0: Input should be greater than 0"),
        ("max_error_rate", 7, "teacher.max_error_rate = 7: Input should be less than or equal to 1"),
        ("base_url", "gpu-box:8000", "must be a URL such as https://host/v1 or http://host:8000/v1"),
        ("base_url", "https://me:secret@host/v1", "must not contain a key or password"),
    ],
)
def test_values_out_of_range(run: Run, endpoint: Endpoint, field: str, value: Any, expected: str) -> None:
    message = refuse(run, endpoint, openai(endpoint, **{field: value}))
    assert f"teacher.{field} = " in message
    assert expected in message


def test_a_budget_needs_a_price(run: Run, endpoint: Endpoint) -> None:
    assert refuse(run, endpoint, openai(endpoint, budget_usd=2)) == (
        "teacher.budget_usd = 2: the price of 'scripted-1' is unknown, so the budget can't be enforced; set teacher.price: "
        "{prompt, completion} in dollars per million tokens"
    )


def test_a_plan_without_a_price_shows_tokens_only(run: Run, endpoint: Endpoint) -> None:
    code, out, err = run("plan", openai(endpoint))
    assert (code, err) == (0, "")
    (total,) = [line for line in out.splitlines() if line.split()[:1] == ["total"]]
    assert "price unknown" in total

    assert "the price of scripted-1 is unknown, so only tokens are counted; set teacher.price" in " ".join(out.split())


def test_relabelling_alone_is_asked_about_first(run: Run, endpoint: Endpoint) -> None:
    teacher = openai(endpoint, price={"prompt": 1000, "completion": 1000}, ask_above_usd=0.01)
    code, _, err = run("relabel", teacher)
    assert (code, one_line(err).partition(": ")[2]) == (2, "does not exist yet; run the previous stage first")
    job = prepare(parse({"task": str(MAILROOM), "teacher": teacher}), Terminal())
    job.run.write(Example, "generated", [Example(str(i), f"text {i}", job.labels[0]) for i in range(50)])
    before = len(endpoint.book())
    code, out, err = run("relabel", teacher)
    assert code == 2
    assert one_line(err).startswith("teacher.ask_above_usd = 0.01: the job may cost about $")
    assert one_line(err).endswith("use --yes to start it, or raise the limit")
    (row,) = [line.split() for line in out.splitlines() if line.split()[:1] in (["generate"], ["relabel"])]
    assert row[:3] == ["relabel", "about", str(job.questions.times(50))]
    assert len(endpoint.book()) == before


# --- the ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger of this version, without answers."""
    from actors.ledger.store import LedgerStore

    file = tmp_path / "ledger.db"
    LedgerStore(f"sqlite:///{file}").close()
    return file


def about_ledger(run: Run, endpoint: Endpoint, file: Path) -> str:
    message = refuse(run, endpoint, openai(endpoint), ledger={"uri": f"sqlite:///{file}"})
    where = f"ledger.uri = 'sqlite:///{file}': "
    assert message.startswith(where)
    return message.removeprefix(where)


def test_a_ledger_that_is_not_a_database(run: Run, endpoint: Endpoint, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("just some text that is long enough to be no database header at all")
    assert about_ledger(run, endpoint, notes).endswith("file is not a database; it is not a ledger; name another file")
    assert notes.read_text().startswith("just some text")


def test_a_database_of_another_program(run: Run, endpoint: Endpoint, tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with sqlite3.connect(file) as connection:
        connection.execute("create table recipes (name text)")
    assert "is not a ledger but another database (it has a table 'recipes'); name another one" in about_ledger(
        run, endpoint, file
    )


def test_a_ledger_of_a_newer_schema(run: Run, endpoint: Endpoint, ledger: Path) -> None:
    with sqlite3.connect(ledger) as connection:
        connection.execute("update meta set value = '99' where key = 'schema_version'")
    message = about_ledger(run, endpoint, ledger)
    assert message.startswith("has schema 99, but this potstill reads schema ")
    assert message.endswith("use the potstill version that wrote it, or name another file")


def test_a_ledger_in_a_folder_that_is_a_file(run: Run, endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    assert "; " in about_ledger(run, endpoint, tmp_path / "folder" / "ledger.db")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "wanted"),
    [("ro", ("give yourself write access to the file",)), ("size=200k", ("full",)), ("size=8m", ("MiB left",))],
    ids=["read-only", "full", "nearly full"],
)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "old"])
def test_a_disk_that_can_not_be_written(
    endpoint: Endpoint, tmp_path: Path, ledger: Path, options: str, wanted: tuple[str, ...], exists: bool
) -> None:
    """On a private file system of the command, since root ignores a folder's permissions."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no mounts of one's own here")
    before, disk = len(endpoint.book()), tmp_path / "disk"
    disk.mkdir()
    uri = f"sqlite:///{disk}/ledger.db"
    config = write_config(
        tmp_path / "config.yaml", {"task": str(MAILROOM), "teacher": openai(endpoint), "ledger": {"uri": uri}}
    )
    fill = f"head -c 150000 /dev/zero > {disk}/other 2>/dev/null;" if options == "size=200k" else ""
    copy = f"cp {ledger} {disk}/ledger.db;" if exists else ""
    size = "size=32m" if options == "ro" else options
    freeze = f"mount -o remount,ro {disk};" if options == "ro" else ""
    script = f'mount -t tmpfs -o {size} tmpfs {disk} && {{ {copy} {fill} {freeze} exec "$@"; }}'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command("generate", config, "--yes")],
        cwd=ROOT,
        env={**environment(tmp_path / "home"), "TMPDIR": os.environ.get("TMPDIR", "/tmp")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    message = one_line(done.stderr)
    assert message.startswith(f"ledger.uri = '{uri}': ")
    assert any(word in message for word in wanted)
    assert "; " in message  # what to do
    assert len(endpoint.book()) == before
