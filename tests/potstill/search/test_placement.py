"""Placement of a search's processes on clusters of every size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import parse
from potstill.search.placement import SMALL_CPUS, TEACHER_CPUS, TRIAL_CPUS, place

HTTP = {"kind": "openai", "model": "m", "api_key_env": ""}


def config(teacher=None, concurrency=0, **student):
    search = {"space": {"augment.shots": [1, 2]}, "concurrency": concurrency}
    return parse({"task": "demo", "search": search, "student": student, "teacher": teacher or {"kind": "embedded"}})


@pytest.mark.parametrize("cores", [2, 4, 16])
def test_each_core_has_a_teacher_and_a_torch_worker(cores):
    placement, _ = place(config(), {"CPU": cores}, trials=100)
    assert (placement.teachers, placement.torch_workers, placement.device) == (cores, cores, "cpu")
    assert placement.concurrency == 2 * cores


def test_with_an_http_teacher_both_cores_train():
    placement, _ = place(config(HTTP), {"CPU": 2}, trials=6)
    assert (placement.teachers, placement.torch_workers, placement.concurrency) == (0, 2, 4)


def test_a_single_core_is_enough():
    placement, _ = place(config(), {"CPU": 1}, trials=6)
    assert placement.torch_workers == 1


def test_the_same_config_fills_a_hundred_gpus():
    placement, _ = place(config(HTTP), {"CPU": 800, "GPU": 100}, trials=1000)
    assert (placement.torch_workers, placement.gpus, placement.device, placement.concurrency) == (100, 1.0, "cuda", 200)
    placement, _ = place(config(), {"CPU": 800, "GPU": 100}, trials=1000)
    assert (placement.teachers, placement.torch_workers) == (50, 50)


def test_one_gpu_is_shared_with_the_teacher():
    placement, _ = place(config(), {"CPU": 8, "GPU": 1}, trials=4)
    assert placement.teacher_gpus + placement.gpus * placement.torch_workers == 1.0


def test_students_with_several_workers_get_their_own_fits():
    placement, _ = place(config(HTTP, workers=4), {"CPU": 64, "GPU": 10}, trials=20)
    assert (placement.workers, placement.concurrency) == (4, 2)


@pytest.mark.parametrize(
    ("teacher", "student", "resources", "words"),
    [
        (
            HTTP,
            {"workers": 4},
            {"CPU": 8, "GPU": 2},
            "needs 4 GPU(s) in addition to the coordinator's, and the cluster has 2",
        ),
        (
            None,
            {"workers": 2},
            {"CPU": 2},
            "needs 2 CPU(s) in addition to 2 teacher process(es), and the cluster has 2",
        ),
        (HTTP, {}, {"CPU": 0}, "needs 1 CPU(s)"),
        (HTTP, {"threads": 4}, {"CPU": 2}, "student.threads = 4: one trial needs 4 CPU(s)"),
        (
            HTTP,
            {"workers": 2, "threads": 4},
            {"CPU": 8},
            "student.workers = 2, student.threads = 4: one trial needs 8 CPU(s)",
        ),
    ],
)
def test_a_trial_that_does_not_fit_is_a_problem(teacher, student, resources, words):
    placement, found = place(config(teacher, **student), resources, trials=4)
    assert placement is None
    assert words in str(found[0])


def test_training_on_cpus_requests_a_cpu_per_thread():
    placement, _ = place(config(HTTP, threads=4), {"CPU": 8}, trials=20)
    assert (placement.torch_workers, placement.cpus) == (2, 3.2)
    placement, _ = place(config(HTTP, workers=2, threads=4), {"CPU": 17}, trials=20)
    assert placement.concurrency == 2
    placement, _ = place(config(HTTP, threads=4), {"CPU": 8, "GPU": 8}, trials=20)
    assert (placement.torch_workers, placement.cpus) == (8, 0.0)


@given(
    st.integers(1, 256),
    st.integers(0, 64),
    st.integers(1, 4),
    st.integers(0, 300),
    st.booleans(),
    st.integers(1, 500),
    st.integers(1, 8),
)
def test_placements_fit_into_the_cluster(cpus, gpus, workers, concurrency, embedded, trials, threads):
    wanted = config(None if embedded else HTTP, concurrency, workers=workers, threads=threads)
    placement, found = place(wanted, {"CPU": cpus, "GPU": gpus}, trials)
    assert (placement is None) == bool(found)
    if placement is None:
        return
    assert 1 <= placement.concurrency <= trials
    assert placement.concurrency <= concurrency or not concurrency
    fits = placement.concurrency if workers > 1 else 0
    used_gpus = placement.teachers * placement.teacher_gpus + placement.torch_workers * placement.gpus
    used_gpus += fits * workers if gpus else 0
    assert used_gpus <= gpus
    if not gpus and cpus > 1:
        used = placement.teachers * TEACHER_CPUS + placement.torch_workers * placement.cpus + TRIAL_CPUS
        used += fits * workers * threads
        assert used <= cpus + SMALL_CPUS
