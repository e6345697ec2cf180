"""The process that embeds stays for the next stage, and one that was lost is started again."""

import numpy as np
import pytest

from jobs import embedding

pytestmark = pytest.mark.slow


def test_one_process_serves_the_job_and_a_lost_one_is_replaced(ray_cluster):
    (first,) = embedding.embed(["a b", "c"])
    assert first.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, atol=1e-5)
    (process,) = embedding._kept.values()
    one, other = embedding.embed(["c"], [])
    np.testing.assert_allclose(one[0], first[1], atol=1e-5)
    assert other.shape == (0, 384)
    assert list(embedding._kept.values()) == [process]
    ray_cluster.kill(process)
    (again,) = embedding.embed(["a b", "c"])
    np.testing.assert_allclose(again, first, atol=1e-5)
    assert list(embedding._kept.values()) != [process]
