"""Values, names and addresses as MLflow accepts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.runtime.paths import absolute_uri
from jobs.tracking.values import MAX_PARAM_CHARACTERS, flatten, param_value, safe_key


def test_values_and_names_fit_mlflow() -> None:
    from mlflow.utils.validation import _validate_metric_name

    for name in ("f1/what is?", "../../etc", "/a//b/", "a/./b/..", "ü$%", "x" * 400, "", "///"):
        _validate_metric_name(safe_key(name))
    assert flatten({"a": {"b": {"c": 1}, "d": {}}}) == {"a.b.c": 1, "a.d": {}}
    long, other = param_value("x" * 7000), param_value("x" * 6999 + "y")
    assert len(long) == MAX_PARAM_CHARACTERS
    assert long != other
    assert param_value([1, "ä"]) == '[1, "ä"]'


def test_relative_sqlite_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_uri("http://host:5000") == "http://host:5000"
