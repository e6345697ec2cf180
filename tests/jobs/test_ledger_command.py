"""`potstill ledger` on the command line."""

import io
import json
import sys
import time

import pyarrow.parquet as pq
import pytest
import yaml

from actors.ledger.store import LedgerStore
from jobs.__main__ import main
from potstill.rows import Message, Request, Response, Sampling

DAY = 86_400.0
REQUESTS = [
    Request("generate", "trec6", "s", "chat", "openai", "m", None, (Message("user", "hi"),), Sampling(), occurrence=i)
    for i in range(40)
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The default location, without a ledger."""
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path / "home"


@pytest.fixture
def ledger(home):
    """30 answers from last year, 10 from today, 10 cents each."""
    store = LedgerStore(f"sqlite:///{home}/ledger.db")
    for part, age in ((REQUESTS[:30], 400 * DAY), (REQUESTS[30:], 0)):
        now = time.time() - age
        store.commit(part, [Response(one.request_id, "text", "stop", (), None, 10, 5, 0.1, 0.1, now) for one in part])
    store.close()
    return home / "ledger.db"


@pytest.fixture
def potstill(monkeypatch, capsys):
    """Run a command in this process: exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["potstill", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return ended.value.code or 0, said.out, said.err

    return call


def test_stats(ledger, potstill):
    code, out, _ = potstill("ledger", "stats")
    assert code == 0
    assert "40 answers, $4.00" in out
    for part in ("openai m", "generate", "trec6", time.strftime("%Y-%m-%d", time.gmtime(time.time() - 400 * DAY))):
        assert part in out
    code, out, _ = potstill("ledger", "stats", "--json", "--ledger", ledger)
    figures = json.loads(out)
    assert figures["answers"] == 40
    assert figures["prompt_tokens"] == 400
    assert [day["answers"] for day in figures["by_day"]] == [30, 10]
    assert figures["by_stage"] == [
        {
            "stage": "generate",
            "answers": 40,
            "prompt_tokens": 400,
            "completion_tokens": 200,
            "cost_usd": pytest.approx(4),
        }
    ]


def test_export(ledger, potstill, tmp_path):
    code, out, _ = potstill("ledger", "export", tmp_path / "all.parquet")
    assert code == 0
    assert "40 answers in" in out
    assert pq.read_table(tmp_path / "all.parquet")["text"].to_pylist() == ["text"] * 40
    code, _, err = potstill("ledger", "export", tmp_path / "all.parquet")
    assert (code, err.count("\n")) == (2, 1)
    assert "already exists; name another file" in err
    code, _, err = potstill("ledger", "export", tmp_path / "no/such/folder/all.parquet")
    assert (code, err.count("\n")) == (2, 1)
    assert "can't be written: No such file or directory; name a file" in err


def test_prune(ledger, potstill, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # no terminal
    said = "30 answers that cost $3.00 are older than 90d"
    code, out, _ = potstill("ledger", "prune", "--older-than", "90d", "--dry-run")
    assert (code, out.strip()) == (0, said)
    code, out, err = potstill("ledger", "prune", "--older-than", "90d")
    assert code == 2
    assert "--yes: is needed without a terminal; nothing was deleted" in err
    code, out, _ = potstill("ledger", "prune", "--older-than", "90d", "--yes")
    assert code == 0
    assert said in out
    assert "deleted 30 answers that cost $3.00; the ledger has" in out
    code, out, _ = potstill("ledger", "prune", "--older-than", "12w", "--yes")
    assert (code, out.strip()) == (0, "0 answers that cost $0.00 are older than 12w")


@pytest.mark.parametrize("age", ["90", "d", "-1d", "90 days", "1.5d", ""])
def test_invalid_ages_are_refused(ledger, potstill, age):
    code, _, err = potstill("ledger", "prune", f"--older-than={age}", "--yes")
    assert code == 2
    assert f"--older-than = {age!r}: is not an age; give one such as 90d, 12h or 8w" in err
    assert "40 answers" in potstill("ledger", "stats")[1]


def test_verify(ledger, potstill):
    code, out, err = potstill("ledger", "verify")
    assert (code, err) == (0, "")
    assert "40 answers, no faults" in out
    store = LedgerStore(f"sqlite:///{ledger}")
    with store.database.write() as connection:
        connection.exec_driver_sql(
            "update responses set model = 'cheaper' where request_id = ?", (REQUESTS[3].request_id,)
        )
    store.close()
    code, out, err = potstill("ledger", "verify")
    assert (code, out) == (1, "")
    assert err == (
        f"ledger.uri = 'sqlite:///{ledger}': answer {REQUESTS[3].request_id}: its request does not match its id\n"
    )


@pytest.mark.parametrize("command", [["stats"], ["export", "x.parquet"], ["prune", "--older-than=1d"], ["verify"]])
def test_a_missing_ledger_is_not_created(home, potstill, command, tmp_path):
    code, _, err = potstill("ledger", *command)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: ledger.uri = 'sqlite:///{home}/ledger.db': there is no ledger; name the one")
    assert not home.exists()
    (tmp_path / "notes.txt").write_text("just some text that is long enough to be no database header at all")
    code, _, err = potstill("ledger", *command, "--ledger", tmp_path / "notes.txt")
    assert code == 1
    assert "file is not a database; it is not a ledger; name another file" in err


@pytest.mark.slow
def test_a_job_whose_ledger_can_not_be_written_does_not_start(home, potstill, tmp_path, monkeypatch):
    """The disk counts as full because the ledger would need more space than any disk has."""
    monkeypatch.setattr("actors.ledger.database.ROOM_BYTES", 2**62)
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"task": "no-such-task"}))
    code, _, err = potstill("distill", config)
    assert code == 2
    (line,) = [line for line in err.splitlines() if "ledger" in line]
    assert "answers would be lost; free some space there, or name a file on another disk" in line


def test_an_export_goes_into_another_ledger(ledger, potstill, tmp_path):
    file, other = tmp_path / "answers.parquet", tmp_path / "other.db"
    assert potstill("ledger", "export", file)[0] == 0
    for new in (40, 0):
        code, out, _ = potstill("ledger", "import", file, "--ledger", other)
        assert code == 0
        assert f"{new} of the 40 answers in" in " ".join(out.split())
    stores = [LedgerStore(f"sqlite:///{place}") for place in (ledger, other)]
    ids = [request.request_id for request in REQUESTS]
    first, second = ({one.request_id: one for one in store.fetch(ids)} for store in stores)
    assert first == second
    assert len(second) == 40
    for store in stores:
        store.close()
    assert potstill("ledger", "verify", "--ledger", other)[0] == 0


def test_invalid_exports_are_not_imported(ledger, potstill, tmp_path):
    def complaint(file):
        code, _, err = potstill("ledger", "import", file, "--ledger", ledger)
        assert code == 2
        (line,) = err.splitlines()
        return line

    assert complaint(tmp_path / "absent.parquet").endswith("absent.parquet': no such file")
    (tmp_path / "text.parquet").write_text("no Parquet")
    assert "can't be read as an export" in complaint(tmp_path / "text.parquet")
    assert potstill("ledger", "export", tmp_path / "good.parquet")[0] == 0
    table = pq.read_table(tmp_path / "good.parquet")
    pq.write_table(table.drop_columns(["model"]), tmp_path / "less.parquet")
    assert "it has no column 'model'" in complaint(tmp_path / "less.parquet")
    changed = table.set_column(table.schema.get_field_index("model"), "model", [["another"] * len(table)])
    pq.write_table(changed, tmp_path / "changed.parquet")
    assert "its request does not match its id" in complaint(tmp_path / "changed.parquet")
