"""One process does a job's small torch work; it is restarted when lost."""

import os

import numpy as np
import pytest

from jobs.runtime import torch_worker

pytestmark = pytest.mark.slow


def test_one_process_serves_the_job_and_a_lost_one_is_replaced(ray_cluster):
    (first,) = torch_worker.embed(["a b", "c"])
    assert first.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, atol=1e-5)
    (kept,) = torch_worker._kept.values()
    one, other = torch_worker.embed(["c"], [])
    np.testing.assert_allclose(one[0], first[1], atol=1e-5)
    assert other.shape == (0, 384)
    pid = torch_worker.call_here(os.getpid)
    assert pid != os.getpid()
    assert torch_worker.call_here(os.getpid) == pid == torch_worker.ask("call", os.getpid, {})
    assert list(torch_worker._kept.values()) == [kept]
    ray_cluster.kill(kept.process)
    (again,) = torch_worker.embed(["a b", "c"])
    np.testing.assert_allclose(again, first, atol=1e-5)
    assert torch_worker.call_here(os.getpid) != pid
