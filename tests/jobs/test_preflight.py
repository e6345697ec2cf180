"""Checks that need a connected cluster."""

import pytest

from jobs import preflight

pytestmark = pytest.mark.slow


def test_a_folder_that_is_missing_on_a_node_is_refused(ray_cluster, tmp_path, monkeypatch):
    assert preflight._unshared(str(tmp_path)) == []  # one node shares everything with itself
    node = ray_cluster.nodes()[0]
    monkeypatch.setattr(ray_cluster, "nodes", lambda: [node, node])
    assert preflight._unshared(str(tmp_path)) == []
    assert preflight._unshared("s3://bucket/runs") == []
    monkeypatch.setattr(preflight, "_sees", lambda path: False)
    (problem,) = preflight._unshared(str(tmp_path))
    assert problem.where == f"storage = '{tmp_path}'"
    assert "is not visible to the nodes" in problem.message
    assert list(tmp_path.iterdir()) == []  # the test files are gone
