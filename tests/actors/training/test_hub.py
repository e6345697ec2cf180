"""Starting weights from the hub: their pooling and revision come from the hub or its cache."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from actors.training import hub, pooling
from potstill.student.encoders import weights_digest

NAME = "owner/model"


def write_pooling(folder: Path, mean: bool = True) -> Path:
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    file = folder / "1_Pooling/config.json"
    file.write_text(json.dumps({"pooling_mode_mean_tokens": mean}))
    return file


@pytest.mark.parametrize("mean", [True, False])
def test_a_hub_models_pooling_is_read(tmp_path: Path, mean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_pooling(tmp_path, mean)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda name, wanted: {(NAME, "1_Pooling/config.json"): file}[name, wanted]
    )
    assert pooling.was_mean_pooled(NAME) is mean
    assert pooling.was_mean_pooled(str(tmp_path)) is mean


@pytest.mark.parametrize(
    "error", [EntryNotFoundError("no such file"), LocalEntryNotFoundError("offline"), OSError("no network")]
)
def test_a_model_without_pooling_settings_is_not_mean_pooled(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, wanted: str) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    assert not pooling.was_mean_pooled(NAME)
    assert not pooling.was_mean_pooled(str(tmp_path))


def test_different_weights_make_a_different_student(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, timeout: SimpleNamespace(sha="abc"))
    assert hub.find_commit(NAME) == "abc"
    assert weights_digest(NAME, "abc") != weights_digest(NAME, "abd") != weights_digest(NAME)


def test_without_network_the_cache_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, timeout: float) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "/cache/snapshots/abc/config.json")
    assert hub.find_commit(NAME) == "abc"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    assert hub.find_commit(NAME) is None


def test_a_folders_pooling_is_part_of_its_digest(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    digests = [weights_digest(str(tmp_path))]
    for mean in (True, False):
        write_pooling(tmp_path, mean)
        digests.append(weights_digest(str(tmp_path)))
    assert len(set(digests)) == 3
