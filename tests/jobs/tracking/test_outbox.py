"""What MLflow could not be sent waits in a spool: in order, once, whoever dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.tracking.outbox import Entry, Outbox, Session, replay, spool_folder
from jobs.tracking.server import RefusedError, TrackingError


def entries(count: int) -> list[Entry]:
    return [Entry("metrics", "run", {"metrics": [["kept", float(number), 0, number]]}) for number in range(count)]


def keep(run_dir: Path, count: int) -> Outbox:
    spool = Outbox.new(run_dir, Session("http://127.0.0.1:9", "1", {"run": "abc"}))
    for entry in entries(count):
        spool.append(entry)
    return spool


def test_entries_are_sent_in_order_and_only_once(tmp_path: Path) -> None:
    spool, sent = keep(tmp_path, 5), []

    def send(entry: Entry) -> None:
        if len(sent) == 3:
            raise TrackingError("down again")
        sent.append(entry)

    with pytest.raises(TrackingError):
        list(spool.drain(send))
    spool.release()
    later = Outbox.load(spool.folder)
    assert later is not None
    assert list(later.drain(sent.append)) == []
    assert sent == entries(5)
    assert not spool_folder(tmp_path).exists()


def test_a_refused_entry_does_not_hold_up_the_others(tmp_path: Path) -> None:
    spool, sent = keep(tmp_path, 3), []

    def send(entry: Entry) -> None:
        if entry.values["metrics"][0][1] == 1.0:
            raise RefusedError("never")
        sent.append(entry)

    assert [entry for entry, _ in spool.drain(send)] == [entries(3)[1]]
    assert sent == [entries(3)[0], entries(3)[2]]


def test_a_living_jobs_spool_is_left_alone(tmp_path: Path) -> None:
    spool = keep(tmp_path, 2)
    assert replay(tmp_path).waiting == 0
    spool.release()
    assert replay(tmp_path).waiting == 2


def test_a_line_cut_off_by_a_crash_is_skipped(tmp_path: Path) -> None:
    spool = keep(tmp_path, 2)
    with (spool.folder / "entries.jsonl").open("a") as lines:
        lines.write('{"kind": "metr')
    spool.release()
    later = Outbox.load(spool.folder)
    assert later is not None
    assert len(later) == 2


def test_a_password_is_not_written_down(tmp_path: Path) -> None:
    spool = Outbox.new(tmp_path, Session("http://me:hush@127.0.0.1:9", "1"))
    spool.append(entries(1)[0])
    assert "hush" not in "".join(path.read_text() for path in spool.folder.iterdir())
