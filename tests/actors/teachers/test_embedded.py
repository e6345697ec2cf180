"""The teacher pool with the real embedded model and a real ledger."""

import os
import signal
import sqlite3
import time

import pytest
import ray

from actors.backends.embedded import identify
from actors.ledger.handle import Ledger
from actors.teachers.answers import Answer, to_answer_table
from actors.teachers.pool import TeacherPool
from potstill.config import EmbeddedTeacher
from potstill.errors import TeacherError
from potstill.rows import Message, Request, Response, Sampling, from_table

pytestmark = pytest.mark.slow

CONFIG = EmbeddedTeacher(actors=1, batch_size=4)


def requests(count, start=0, **changes):
    identity = identify(CONFIG)
    return [
        Request(
            changes.get("stage", "generate"),
            "t",
            "s",
            "list",
            identity.provider,
            identity.model,
            identity.weights_digest,
            (Message("prompt", "Questions about places:\n1. Where is Paris?\n2."),),
            Sampling(1.0, 0.95, changes.get("max_tokens", 12)),
            occurrence=start + i,
        )
        for i in range(count)
    ]


def committed(path):
    """Ids of the responses in the ledger at ``path``; empty until its actor has created the tables."""
    if not path.exists():
        return set()
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        if not connection.execute("select 1 from sqlite_master where name = 'responses'").fetchone():
            return set()
        return {name for (name,) in connection.execute("select request_id from responses")}


@pytest.fixture
def path(tmp_path, ray_cluster):
    return tmp_path / "ledger.db"


def test_answers_are_committed_before_they_are_seen_and_asked_once(path):
    wanted = requests(10)
    seen = []

    def on_batch(batch):
        seen.append(batch.num_rows)
        assert set(batch["request_id"].to_pylist()) <= committed(path)

    with TeacherPool(CONFIG, Ledger(f"sqlite:///{path}")) as pool:
        first = pool.ask(wanted, on_batch)
        again = pool.ask(wanted + requests(2, start=10))
    assert sum(seen) == 10
    assert sum(first["reused"].to_pylist()) == 0
    assert sum(again["reused"].to_pylist()) == 10
    texts = [{r.request_id: r.text for r in from_table(table, Response)} for table in (first, again)]
    assert texts[0].items() <= texts[1].items()
    assert all(texts[0].values())


def test_a_teacher_that_dies_while_answering_loses_only_uncommitted_answers(path):
    """One process, killed after its first answers: it restarts, reuses them and resumes its own claims."""
    wanted = requests(16, start=100, max_tokens=40)
    done_before = set()
    # Waiting for another owner's lease to expire would exceed this test's timeout.
    with TeacherPool(CONFIG, Ledger(f"sqlite:///{path}", lease_s=3600.0)) as pool:
        pool.start()
        process = ray.get(pool.actors[0].__ray_call__.remote(lambda actor: os.getpid()))

        def kill(batch):
            if not done_before:  # the teacher holds at most two of the four batches when the first returns
                done_before.update(committed(path))
                os.kill(process, signal.SIGKILL)

        answers = from_table(pool.ask(wanted, kill), Response)
    assert {answer.request_id for answer in answers} == {request.request_id for request in wanted}
    assert all(answer.error is None for answer in answers)
    assert 0 < len(done_before) < len(wanted)
    with sqlite3.connect(path) as connection:
        assert connection.execute("select count(*) from responses").fetchone() == (len(wanted),)
        assert connection.execute("select count(*) from claims").fetchone() == (0,)


def test_a_missing_model_is_reported_in_one_line(path):
    with (
        pytest.raises(TeacherError) as caught,
        TeacherPool(CONFIG.model_copy(update={"model": "/no/such/model"}), Ledger(f"sqlite:///{path}")) as pool,
    ):
        pool.start()
    assert str(caught.value).startswith("teacher.model = '/no/such/model'")
    assert "\n" not in str(caught.value)


def test_all_teachers_work_at_the_same_time(path):
    # Classes defined in a function are pickled by value: the workers can't import this file.
    class Meeting:
        def __init__(self, expected):
            self.expected, self.there = expected, 0

        def arrive(self):
            self.there += 1

        def complete(self):
            return self.there >= self.expected

    class Colleague:
        """A teacher that answers only once all the others are working too."""

        def __init__(self, meeting):
            self.meeting = meeting

        def answer_table(self, asked):
            ray.get(self.meeting.arrive.remote())
            for _ in range(3000):
                if ray.get(self.meeting.complete.remote()):
                    names = asked["request_id"].to_pylist()
                    return to_answer_table([Answer(Response(name, "done"), reused=False) for name in names])
                time.sleep(0.1)
            raise RuntimeError("the others never came")

    meeting = ray.remote(Meeting).options(num_cpus=0).remote(3)
    pool = TeacherPool(CONFIG, Ledger(f"sqlite:///{path}"))
    pool.actors = [ray.remote(Colleague).options(num_cpus=0).remote(meeting) for _ in range(3)]
    answered = pool.ask(requests(12))
    pool.close()
    assert answered["text"].to_pylist() == ["done"] * 12
