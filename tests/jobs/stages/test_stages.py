"""The stages without a cluster: plans, arms, usage."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from actors.teachers.answers import Answer, to_answer_table
from jobs import preflight
from jobs.report.result import paid
from jobs.run import data as loading
from jobs.runtime.progress import Meter, format_usd
from jobs.stages import finetune, generate, relabel
from jobs.stages.ask import Usage, ask
from potstill.config import parse
from potstill.errors import StageError
from potstill.labels.questions import VOTE
from potstill.rows import Example, Request, Response, from_table
from potstill.student.arms import arm_digest
from tests.support.examples import written


def relabelled(job, per_class=3) -> list[Example]:
    return [
        written(label, i, label_probs=tuple(0.8 if other == label else 0.1 for other in job.labels))
        for label in job.labels
        for i in range(per_class)
    ]


def test_the_first_round_asks_for_every_class_and_the_next_for_missing_texts(job):
    first = generate.next_counts(job, [], {})
    assert set(first) == set(job.labels)
    assert all(start == 0 < stop for start, stop in first.values())
    drawn = {label: stop for label, (_, stop) in first.items()}
    enough, short = job.labels[:2], job.labels[2]
    examples = [written(label, i) for label in enough for i in range(8)] + [written(short, i) for i in range(4)]
    following = generate.next_counts(job, examples, drawn)
    assert set(following) == {short}
    start, stop = following[short]
    assert start == drawn[short]
    assert stop > start
    dropped = [written(label, i, kept=False, dropped_because="duplicate") for label in enough for i in range(8)]
    assert set(generate.next_counts(job, dropped, drawn)) == set(job.labels)


def test_a_later_round_continues_the_first(job):
    both = generate.plan_requests(job, dict.fromkeys(job.labels, (0, 6)))
    first = generate.plan_requests(job, dict.fromkeys(job.labels, (0, 4)))
    second = generate.plan_requests(job, dict.fromkeys(job.labels, (4, 6)))
    assert {one.request_id for one in first} | {one.request_id for one in second} == {one.request_id for one in both}


def test_arms_differ_only_in_their_texts(job):
    job.run.write(Example, "relabelled", [*relabelled(job), written(job.labels[0], 9, kept=False)])
    job.run.write(Example, "generated", [written(label, i) for label in job.labels for i in range(7)])
    arms = {arm.name: arm for arm in finetune.plan_arms(job)}
    assert set(arms) == {"start", "distilled", "seeds_only", "generated", "real_equal"}
    seeds = len(job.data.seeds)
    assert len(arms["start"].rows) == seeds + 3 * len(job.labels)
    assert {arm.name: arm.start for arm in arms.values() if arm.start} == dict.fromkeys(
        ("distilled", "generated", "real_equal"), "start"
    )
    assert len(arms["seeds_only"].rows) == seeds
    assert len(arms["distilled"].rows) == seeds + 3 * len(job.labels)
    assert len(arms["generated"].rows) == seeds + 4 * len(job.labels)
    weights = {row.weight for row in arms["distilled"].rows[:seeds]}
    assert weights == {job.config.student.seed_weight}
    real = {row.text for row in job.data.train} | {row.text for row in job.data.seeds}
    assert {row.text for row in arms["real_equal"].rows} <= real


def test_unlabelled_texts_train_a_student_without_a_teacher_too(job):
    real = [replace(written(label, 20 + i), target_label=None) for label in job.labels for i in range(2)]
    job.run.write(Example, "relabelled", [*relabelled(job), *real])
    job.run.write(Example, "generated", relabelled(job))
    arms = {arm.name: arm for arm in finetune.plan_arms(job)}
    alone = arms["self_trained"]
    assert (alone.start, alone.self_trained) == ("start", True)
    unlabelled = [row for row in alone.rows if max(row.label_probs) < 1]
    assert [row.text for row in unlabelled] == [example.text for example in real]
    assert {row.label_probs for row in unlabelled} == {(1 / len(job.labels),) * len(job.labels)}


def test_repeats_train_every_student_again(job):
    job.run.write(Example, "relabelled", relabelled(job))
    job.run.write(Example, "generated", relabelled(job))
    student = job.config.student.model_copy(update={"repeats": 2})
    again = replace(job, config=job.config.model_copy(update={"student": student}))
    once, twice = finetune.plan_arms(job), finetune.plan_arms(again)
    assert [arm.name for arm in twice] == [arm.name for arm in once] + [f"{arm.name}-seed1" for arm in once]


def test_no_real_text_beyond_the_seeds_reaches_the_distilled_student(job):
    job.run.write(Example, "relabelled", relabelled(job))
    job.run.write(Example, "generated", relabelled(job))
    (distilled,) = [arm for arm in finetune.plan_arms(job) if arm.name == "distilled"]
    other = {row.text for part in (job.data.train, job.data.validation, job.data.test) for row in part}
    assert not other & {row.text for row in distilled.rows}
    assert not distilled.validation


def test_early_stopping_is_for_all_students_but_the_start_or_none(job):
    job.run.write(Example, "relabelled", relabelled(job))
    job.run.write(Example, "generated", relabelled(job))
    student = job.config.student.model_copy(update={"early_stopping": True})
    again = replace(job, config=job.config.model_copy(update={"student": student}))
    stopped = finetune.plan_arms(again)
    assert job.data.validation
    for arm, usual in zip(stopped[1:], finetune.plan_arms(job)[1:], strict=True):
        assert [row.text for row in arm.validation] == [row.text for row in job.data.validation]
        assert (arm.name, arm.rows, usual.validation) == (usual.name, usual.rows, ())
        keys = [
            arm_digest(one, config.student, job.labels, "w", {"start": "s"})
            for one, config in ((arm, again.config), (usual, job.config))
        ]
        assert keys[0] != keys[1]


def test_early_stopping_without_validation_texts_is_refused(job, tmp_path):
    job.run.write(Example, "relabelled", relabelled(job))
    content = {**job.config.model_dump(), "student": {"early_stopping": True}, "tracking": {"uri": "none"}}
    with pytest.MonkeyPatch.context() as patch:
        config = parse(content)
        assert not any("early_stopping" in str(one) for one in preflight.problems(config, ["finetune"]))
        patch.setattr(loading, "VALIDATION_SHARE", 0.0)
        (told,) = [str(one) for one in preflight.problems(config, ["finetune"]) if "early_stopping" in str(one)]
    assert told.startswith("student.early_stopping = True: the task has no validation texts")


def test_nothing_kept_is_an_error(job):
    job.run.write(Example, "relabelled", [written(job.labels[0], 0, kept=False)])
    with pytest.raises(StageError, match="no text was kept"):
        finetune.plan_arms(job)


def test_usage_adds_up():
    both = Usage(1, 1, 0, 10, 5, 0.1, 2.0, 15, 2, 0.1) + Usage(2, 0, 1, 20, 5, 0.0, 1.0, cost_usd=0.5)
    assert both == Usage(3, 1, 1, 30, 10, 0.1, 3.0, 15, 2, 0.6)
    assert both.reused_requests == 2


class ScriptedPool:
    """Answers every request; every third from the ledger, every fifth with an error, in batches of four."""

    def batch_progress(self):
        return None

    def held_because(self):
        return None

    def stream(self, tables, folder=None):
        requests = [request for table in tables for request in from_table(table, Request)]
        for start in range(0, len(requests), 4):
            answers = [self.answer(i, requests[i]) for i in range(start, min(start + 4, len(requests)))]
            yield to_answer_table(answers[::-1])

    def answer(self, number, request):
        error = "content filter" if number % 5 == 4 and number < 10 else None
        response = Response(
            request.request_id, f"1. text {number}", prompt_tokens=100, completion_tokens=10, cost_usd=0.001
        )
        return Answer(replace(response, error=error), reused=number % 3 == 0)


def test_lines_dropped_by_the_parser_are_reported(job):
    class Chatty(ScriptedPool):
        def answer(self, number, request):
            text = (
                "I'm sorry, but I cannot assist with that."
                if number == 1
                else f"{request.target_label} no. {number} {request.request_id}"
            )
            return Answer(Response(request.request_id, text), reused=False)

    examples, made = generate.generate(job, Chatty())
    assert made.dropped["chatter"] == made.rounds
    assert made.texts == len(examples) + made.rounds == made.kept + sum(made.dropped.values())


@pytest.mark.parametrize(("every", "told"), [(2, True), (10, False)])
def test_many_truncated_texts_give_one_warning(job, capsys, every, told):
    class Cutting(ScriptedPool):
        def answer(self, number, request):
            text = f"{request.target_label} no. {number} {request.request_id}"
            return Answer(Response(request.request_id, text, "length" if number % every == 0 else "stop"), reused=False)

    _, made = generate.generate(job, Cutting())
    assert made.dropped["cut short"] > 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "were cut short" in line]
    assert len(warnings) == told  # in the first round only
    assert all("augment.max_tokens = 64" in line for line in warnings)


def test_asking_counts_new_and_reused_answers(job):
    requests = list(generate.plan_requests(job, dict.fromkeys(job.labels, (0, 10))))
    assert len(requests) == 30
    meter = Meter()
    # Three requests are planned twice but asked once; each occurrence gets the answer.
    planned = [*requests, *requests[:3]]
    answered, usage = ask(job, ScriptedPool(), "generate-1", iter(planned), 33, meter)
    assert (usage.requests, usage.new_requests, usage.reused_requests, usage.failed) == (30, 20, 10, 2)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.new_tokens) == (3000, 300, 2200)
    assert usage.new_cost_usd == pytest.approx(0.02)
    assert usage.cost_usd == pytest.approx(0.03)  # including what an earlier run paid
    assert answered.plan["request_id"].to_pylist() == [request.request_id for request in planned]
    texts = [None if i in (4, 9) else f"1. text {i}" for i in range(30)]
    assert [text for (text,) in answered.rows("text")] == [*texts, *texts[:3]]
    assert job.run.read(Request, "generate-1") == requests
    errors = {row.request_id: row.error for row in job.run.read(Response, "generate-1")}
    assert [errors[request.request_id] for request in requests] == [
        "content filter" if i in (4, 9) else None for i in range(30)
    ]
    shown = meter.progress()
    assert (shown.done, shown.total, shown.reused) == (30, 30, 10)
    assert shown.cost_usd == pytest.approx(shown.expected_usd) == pytest.approx(0.02)


class WritingPool(ScriptedPool):
    """Writes a distinct text for every request that names its class."""

    used: ClassVar = {"prompt_tokens": 4, "completion_tokens": 3, "cost_usd": 0.25}

    def answer(self, number, request):
        if not request.choices:
            said = f"{request.target_label} letter with the code {request.request_id} please"
            return Answer(Response(request.request_id, said, "stop", **self.used), reused=True)
        asked = request.choices[0] if request.target_label else request.messages[-1].content.rsplit("\n", 2)[-2]
        about = [request.target_label] if request.target_label else request.choices
        sure = tuple(-0.1 if name.replace(" ", "_") in asked.replace(" ", "_") else -4.0 for name in about)
        return Answer(Response(request.request_id, choice_logprobs=sure, **self.used), reused=False)


def test_generate_and_relabel(job, monkeypatch):
    def embed(job, texts):
        rng = np.random.default_rng(0)
        parts = [rng.normal(size=(count, 8)) for count in (len(texts), len(job.data.seeds), 3 * len(job.labels))]
        return relabel.Embeddings(*(part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts))

    monkeypatch.setattr(relabel, "embed_texts", embed)
    examples, made = generate.generate(job, WritingPool())
    assert made.kept == len([example for example in examples if example.kept]) > 0
    planned = {row.request_id: row for row in job.run.read(Request, "generate-1")}
    for example in examples:
        assert example.text.split()[0] == planned[example.request_id].target_label == example.target_label
        assert example.alpha == planned[example.request_id].alpha
    relabel.relabel(job, WritingPool())
    asked = len(job.run.read(Request, "generate-1")) + len(job.run.read(Request, "relabel"))
    assert paid(job) == f"{asked:,} requests, {asked * 7:,} tokens, {format_usd(asked * 0.25)}"
    rows = [row for row in job.run.read(Example, "relabelled") if row.label_probs]
    votes = {row.request_id: row for row in job.run.read(Request, "relabel")}
    assert len(rows) == made.kept
    for row in rows:
        assert row.teacher_label == row.label == row.target_label
        first = votes[row.relabel_request_id]
        assert (first.stage, first.strategy) == ("relabel", VOTE)
        assert row.text in first.messages[-1].content
