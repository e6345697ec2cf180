"""Reports of students, and local copies of students in remote storage."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import fsspec
import pytest

from actors import student_folder
from actors.student_folder import ArmReport


def test_a_local_folder_is_used_in_place(tmp_path: Path) -> None:
    with student_folder.fetched(str(tmp_path)) as local:
        assert local == str(tmp_path)
    assert tmp_path.is_dir()


def test_a_report_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    report = ArmReport("d", 1, [1.0], [0.1], 2, 4, 4, 0, 1.0, 1, 1, anchor_weight={"opinion": 0.5})
    old = {"say" if name == "anchor_weight" else name: value for name, value in asdict(report).items()}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    assert student_folder.read_report(str(tmp_path)) is None
    (tmp_path / "complete.json").write_text(json.dumps(old))
    assert student_folder.read_report(str(tmp_path)) == report


def test_a_remote_students_local_copy_is_deleted() -> None:
    with fsspec.open("memory://potstill-export/model/config.json", "w") as file:
        json.dump({"a": 1}, file)
    with student_folder.fetched("memory://potstill-export/model") as local:
        assert json.loads(Path(local, "config.json").read_text()) == {"a": 1}
    assert not Path(local).exists()
    places = []

    def break_off() -> None:
        with student_folder.fetched("memory://potstill-export/model/") as local:
            places.append(Path(local))
            raise ValueError("can't be loaded")

    with pytest.raises(ValueError, match="can't be loaded"):
        break_off()
    assert not places[0].exists()
