"""Entries that could not be sent to MLflow wait in an outbox; each is sent once, in order, after any crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.tracking.outbox import Entry, Outbox, Session, outbox_folder, replay
from jobs.tracking.server import RefusedError, TrackingError


def entries(count: int) -> list[Entry]:
    return [Entry("metrics", "run", {"metrics": [["kept", float(number), 0, number]]}) for number in range(count)]


def keep(run_dir: Path, count: int) -> Outbox:
    outbox = Outbox.new(run_dir, Session("http://127.0.0.1:9", "1", {"run": "abc"}))
    for entry in entries(count):
        outbox.append(entry)
    return outbox


def test_entries_are_sent_in_order_and_only_once(tmp_path: Path) -> None:
    outbox, sent = keep(tmp_path, 5), []

    def send(entry: Entry) -> None:
        if len(sent) == 3:
            raise TrackingError("down again")
        sent.append(entry)

    with pytest.raises(TrackingError):
        list(outbox.drain(send))
    outbox.release()
    later = Outbox.load(outbox.folder)
    assert later is not None
    assert list(later.drain(sent.append)) == []
    assert sent == entries(5)
    assert not outbox_folder(tmp_path).exists()


def test_a_refused_entry_does_not_hold_up_the_others(tmp_path: Path) -> None:
    outbox, sent = keep(tmp_path, 3), []

    def send(entry: Entry) -> None:
        if entry.values["metrics"][0][1] == 1.0:
            raise RefusedError("never")
        sent.append(entry)

    assert [entry for entry, _ in outbox.drain(send)] == [entries(3)[1]]
    assert sent == [entries(3)[0], entries(3)[2]]


def test_a_living_jobs_outbox_is_left_alone(tmp_path: Path) -> None:
    outbox = keep(tmp_path, 2)
    assert replay(tmp_path).waiting == 0
    outbox.release()
    assert replay(tmp_path).waiting == 2


def test_a_line_cut_off_by_a_crash_is_skipped(tmp_path: Path) -> None:
    outbox = keep(tmp_path, 2)
    with (outbox.folder / "entries.jsonl").open("a") as lines:
        lines.write('{"kind": "metr')
    outbox.release()
    later = Outbox.load(outbox.folder)
    assert later is not None
    assert len(later) == 2


def test_a_password_is_not_written_down(tmp_path: Path) -> None:
    outbox = Outbox.new(tmp_path, Session("http://me:hush@127.0.0.1:9", "1"))
    outbox.append(entries(1)[0])
    assert "hush" not in "".join(path.read_text() for path in outbox.folder.iterdir())
