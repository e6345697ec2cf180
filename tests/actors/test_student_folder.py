"""Copies of students from remote storage are gone when they have been read."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from actors import student_folder


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    with student_folder.fetched(str(tmp_path)) as local:
        assert local == str(tmp_path)
    assert tmp_path.is_dir()


def test_a_copy_of_a_remote_one_does_not_stay() -> None:
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
