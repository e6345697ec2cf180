"""What the stages decide before any cluster is asked: plans, arms, usage."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from actors.teacher import Answer, to_answer_table
from jobs import finetune, generate, plan, relabel, report
from jobs.asking import Usage, ask
from jobs.job import prepare
from jobs.progress import Meter, format_duration, format_usd
from jobs.terminal import Terminal
from potstill.config import parse
from potstill.cost import Price
from potstill.errors import StageError
from potstill.relabelling import VOTE
from potstill.rows import Example, Message, Prediction, Request, Response, Sampling, from_table, to_table
from potstill.scores import Difference, Interval, score
from potstill.teachers import OpenAITeacher

MAILROOM = str(Path(__file__).parents[1] / "fixtures/tasks/mailroom")


@pytest.fixture
def job(tmp_path):
    content = {
        "task": MAILROOM,
        "storage": str(tmp_path / "runs"),
        "ledger": {"uri": f"sqlite:///{tmp_path}/ledger.db"},
        "augment": {"per_class": 4, "over_generate": 2.0},
        "evaluate": {"compare": ["seeds_only", "generated", "real_equal"]},
    }
    return prepare(parse(content), Terminal())


def written(label: str, number: int, **changes) -> Example:
    values = {"example_id": f"{label}{number}", "text": f"{label} text {number}", "label": label, "target_label": label}
    return Example(**{**values, **changes})


def relabelled(job, per_class=3) -> list[Example]:
    return [
        written(label, i, label_probs=tuple(0.8 if other == label else 0.1 for other in job.labels))
        for label in job.labels
        for i in range(per_class)
    ]


def test_the_first_round_asks_for_every_class_and_the_next_for_what_is_missing(job):
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


def test_a_later_round_goes_on_where_the_first_stopped(job):
    both = generate.plan_requests(job, dict.fromkeys(job.labels, (0, 6)))
    first = generate.plan_requests(job, dict.fromkeys(job.labels, (0, 4)))
    second = generate.plan_requests(job, dict.fromkeys(job.labels, (4, 6)))
    assert {one.request_id for one in first} | {one.request_id for one in second} == {one.request_id for one in both}


def test_the_plan_counts_what_is_distinct_and_makes_no_ledger(job, tmp_path):
    stages = plan.plan(job)
    assert [stage.stage for stage in stages] == ["generate", "relabel"]
    assert stages[0].known == 0
    assert stages[0].requests > 0
    assert not (tmp_path / "ledger.db").exists()


def test_arms_differ_only_in_what_they_are_compared_by(job):
    job.run.write(Example, "relabelled", [*relabelled(job), written(job.labels[0], 9, kept=False)])
    job.run.write(Example, "generated", [written(label, i) for label in job.labels for i in range(7)])
    arms = {arm.name: arm for arm in finetune.plan_arms(job)}
    assert set(arms) == {"distilled", "seeds_only", "generated", "real_equal"}
    seeds = len(job.data.seeds)
    assert len(arms["seeds_only"].rows) == seeds
    assert len(arms["distilled"].rows) == seeds + 3 * len(job.labels)
    assert len(arms["generated"].rows) == seeds + 4 * len(job.labels)
    weights = {row.weight for row in arms["distilled"].rows[:seeds]}
    assert weights == {job.config.student.seed_weight}
    real = {row.text for row in job.data.train} | {row.text for row in job.data.seeds}
    assert {row.text for row in arms["real_equal"].rows} <= real


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


def test_nothing_kept_is_an_error(job):
    job.run.write(Example, "relabelled", [written(job.labels[0], 0, kept=False)])
    with pytest.raises(StageError, match="no text was kept"):
        finetune.plan_arms(job)


def test_usage_adds_up():
    both = Usage(1, 1, 0, 10, 5, 0.1, 2.0, 15, 2) + Usage(2, 0, 1, 20, 5, 0.0, 1.0)
    assert both == Usage(3, 1, 1, 30, 10, 0.1, 3.0, 15, 2)
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


def test_asking_counts_what_is_new_and_what_the_ledger_had(job):
    requests = list(generate.plan_requests(job, dict.fromkeys(job.labels, (0, 10))))
    assert len(requests) == 30
    meter = Meter()
    # Three requests are planned twice: they are asked once, and both places have the answer.
    planned = [*requests, *requests[:3]]
    answered, usage = ask(job, ScriptedPool(), "generate-1", iter(planned), 33, meter)
    assert (usage.requests, usage.new_requests, usage.reused_requests, usage.failed) == (30, 20, 10, 2)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.new_tokens) == (3000, 300, 2200)
    assert usage.new_cost_usd == pytest.approx(0.02)
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


def question(text, *choices):
    return Request(
        "s", "t", "s", "chat", "openai", "m", None, (Message("user", text),), Sampling(max_tokens=40), choices
    )


def test_a_stage_costs_what_its_tokens_do_and_takes_what_its_limits_allow():
    terms = plan.Terms(Price(1.0, 2.0, request=0.01), concurrency=2, requests_per_minute=30, choice_tokens=5)
    asked = [question("a" * 42), question("b" * 84, "yes", "no")]
    stage = plan.plan_stage("relabel", asked, terms, times=10)
    assert (stage.requests, stage.prompt_tokens, stage.completion_tokens) == (20, 10 * (14 + 24), 10 * (40 + 5))
    assert stage.cost_usd == pytest.approx((380 + 2 * 450) / 1e6 + 20 * 0.01)
    assert stage.seconds == pytest.approx(40)
    half = plan.plan_stage("relabel", asked, terms, times=10, known=10)
    assert (half.requests, half.known) == (20, 10)
    assert (half.cost_usd, half.seconds) == (pytest.approx(stage.cost_usd / 2), pytest.approx(20))
    nothing_left = plan.plan_stage("relabel", asked, terms, times=10, known=20)
    assert (nothing_left.cost_usd, nothing_left.seconds) == (0, 0)
    nothing = plan.plan_stage("relabel", [], terms)
    assert (nothing.requests, nothing.cost_usd, nothing.seconds) == (0, 0, 0)


def test_without_a_limit_a_minute_concurrency_bounds_the_time():
    quick, slow = (plan.plan_stage("generate", [question("a")] * 64, plan.Terms(None, size)) for size in (64, 16))
    assert slow.seconds == pytest.approx(4 * quick.seconds)
    assert quick.cost_usd is None


def test_the_whole_is_known_where_all_stages_are():
    one = plan.StagePlan("generate", 10, 4, 100, 50, 0.5, 30.0)
    two = plan.StagePlan("relabel", 20, None, 200, 0, 0.25, 60.0)
    assert plan.total([one, two]) == plan.StagePlan("total", 30, None, 300, 50, 0.75, 90.0)
    assert plan.total([one, replace(two, cost_usd=None, seconds=None)]).cost_usd is None
    assert plan.total([one, one]).known == 8
    assert plan.total([]).cost_usd is None


def shown_plan(job, monkeypatch, terms):
    stream = io.StringIO()
    monkeypatch.setattr(plan, "teacher_terms", lambda teacher: terms)
    told = replace(job, terminal=Terminal(Console(file=stream, width=140)))
    plan.print_plan(told, plan.plan(told))
    return stream.getvalue()


def test_the_embedded_teacher_costs_nothing_and_nobody_knows_how_fast_it_is(job, monkeypatch):
    rows = shown_plan(job, monkeypatch, plan.teacher_terms(job.config.teacher)).splitlines()
    (total,) = [row.split() for row in rows if row.startswith("total")]
    assert total[-2:] == ["$0.00", "-"]


def test_an_endpoint_has_a_price_and_a_time(job, monkeypatch):
    terms = plan.http_terms("gpt-4o-mini", "https://api.openai.com/v1", concurrency=64, requests_per_minute=60)
    text = shown_plan(job, monkeypatch, terms)
    generated, relabelled, whole = (
        row for row in text.splitlines() if row.startswith(("generate", "relabel", "total"))
    )
    assert "price" not in text
    stages = plan.plan(job)
    assert all(0 < stage.cost_usd < 0.1 for stage in stages)
    assert generated.split()[-2:] == [format_usd(stages[0].cost_usd), format_duration(stages[0].requests)]
    assert relabelled.split()[-2] == format_usd(stages[1].cost_usd)
    assert whole.split()[-2] == format_usd(sum(stage.cost_usd for stage in stages))


def test_batches_are_half_the_price_and_take_up_to_a_day():
    single, batch = (
        plan.teacher_terms(OpenAITeacher(kind="openai", model="gpt-4o-mini", mode=mode))
        for mode in ("realtime", "batch")
    )
    asked = [question(name) for name in "abc"]
    usual, half = plan.plan_stage("generate", asked, single), plan.plan_stage("generate", asked, batch)
    assert half.cost_usd == pytest.approx(usual.cost_usd / 2)
    assert half.seconds == 24 * 3600
    assert plan.plan_stage("generate", asked, batch, known=3).seconds == 0


def test_a_server_of_ones_own_has_no_price_until_the_config_names_one(job, monkeypatch):
    text = shown_plan(job, monkeypatch, plan.http_terms("qwen", "http://localhost:8000/v1", concurrency=8))
    assert text.count("price unknown") == 3
    assert "set teacher.price" in text
    named = plan.http_terms("qwen", "http://localhost:8000/v1", concurrency=8, price=Price(0.1, 0.2))
    assert "price unknown" not in shown_plan(job, monkeypatch, named)


def test_a_report_survives_its_file(job):
    rows = [Prediction(str(i), job.labels[i % 3], (0.6, 0.2, 0.2), job.labels[0]) for i in range(30)]
    scores = score(rows, job.labels, resamples=100)
    result = report.Report("mailroom-x", {"distilled": scores, "seeds_only": scores}, "seeds_only", difference(0.02))
    assert report.Report.from_json(result.as_json()) == result
    assert from_table(to_table(rows, Prediction), Prediction) == rows


def test_a_report_of_repeats_has_their_mean_and_deviation(job):
    right = [Prediction(str(i), job.labels[i % 3], (0.6, 0.2, 0.2), job.labels[i % 3]) for i in range(30)]
    wrong = [Prediction(str(i), job.labels[i % 3], (0.6, 0.2, 0.2), job.labels[0]) for i in range(30)]
    good, bad = (score(rows, job.labels, resamples=100) for rows in (right, wrong))
    scores = {"distilled": good, "distilled-seed1": bad, "seeds_only": bad, "seeds_only-seed1": bad}
    result = report.Report("r", {**scores, "seeds_regression": bad}, "seeds_only", difference(0.02))
    assert report.score_columns(result)[-1] == "macro-F1 over 2 training seeds"
    rows = {row[0]: row[-1] for row in report.score_rows(result)}
    assert rows["distilled"] == f"{(1 + 1 / 6) / 2:.3f} ± {(1 - 1 / 6) / 2**0.5:.3f}"
    assert rows["seeds only, fine-tuned"] == "0.167 ± 0.000"
    assert rows["seeds only, regression on embeddings"] == ""


def difference(gain: float, low: float = -0.1, high: float = 0.2) -> Difference:
    return Difference(Interval(gain, low, high), Interval(gain, low, high), 0.5)


def test_the_verdict_says_when_it_may_be_chance():
    def words(**interval):
        return report.verdict(report.Report("r", {}, "seeds_only", difference(**interval)))

    assert "0.020 macro-F1 above" in words(gain=0.02)
    assert "may be chance" in words(gain=0.02)
    assert "may be chance" not in words(gain=0.1, low=0.05)
    assert "0.100 macro-F1 below" in words(gain=-0.1, high=-0.05)


class WritingPool(ScriptedPool):
    """Writes a text of its own for every request, and knows by it which class it was written for."""

    def answer(self, number, request):
        if not request.choices:
            said = f"{request.target_label} letter with the code {request.request_id} please"
            return Answer(Response(request.request_id, said, "stop"), reused=False)
        asked = request.choices[0] if request.target_label else request.messages[-1].content.rsplit("\n", 2)[-2]
        about = [request.target_label] if request.target_label else request.choices
        sure = tuple(-0.1 if name.replace(" ", "_") in asked.replace(" ", "_") else -4.0 for name in about)
        return Answer(Response(request.request_id, choice_logprobs=sure), reused=False)


def test_texts_are_written_and_relabelled_from_tables_alone(job, monkeypatch):
    def embed(job, examples):
        rng = np.random.default_rng(0)
        parts = [rng.normal(size=(count, 8)) for count in (len(examples), len(job.data.seeds), len(job.labels))]
        return relabel.Embeddings(*(part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts))

    monkeypatch.setattr(relabel, "_embed", embed)
    examples, made = generate.generate(job, WritingPool())
    assert made.kept == len([example for example in examples if example.kept]) > 0
    planned = {row.request_id: row for row in job.run.read(Request, "generate-1")}
    for example in examples:
        assert example.text.split()[0] == planned[example.request_id].target_label == example.target_label
        assert example.alpha == planned[example.request_id].alpha
    relabel.relabel(job, WritingPool())
    rows = [row for row in job.run.read(Example, "relabelled") if row.label_probs]
    votes = {row.request_id: row for row in job.run.read(Request, "relabel")}
    assert len(rows) == made.kept
    for row in rows:
        assert row.teacher_label == row.label == row.target_label
        first = votes[row.relabel_request_id]
        assert (first.stage, first.strategy) == ("relabel", VOTE)
        assert row.text in first.messages[-1].content
