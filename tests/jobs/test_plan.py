"""The plan: requests, tokens, dollars and warnings."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from actors.ledger.store import LedgerStore
from jobs import plan
from jobs.plan import teacher_terms
from jobs.runtime.progress import format_duration, format_usd
from jobs.runtime.terminal import Terminal
from jobs.stages import generate
from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.chat import Abilities, most_completion_tokens
from potstill.endpoint.cost import Price
from potstill.errors import InputError
from potstill.rows import Example, Message, Request, Response, Sampling
from potstill.task import LabelledText, Seed
from tests.support.examples import written


def test_the_plan_counts_what_is_distinct_and_makes_no_ledger(job, tmp_path):
    stages = plan.plan(job)
    assert [stage.stage for stage in stages] == ["generate", "relabel"]
    assert stages[0].known == 0
    assert stages[0].requests > 0
    assert not (tmp_path / "ledger.db").exists()


def question(text, *choices):
    return Request(
        "s", "t", "s", "chat", "openai", "m", None, (Message("user", text),), Sampling(max_tokens=40), choices
    )


OWN_SERVER = {"model": "qwen", "base_url": "http://localhost:8000/v1", "concurrency": 8}


def http_terms(**settings):
    return teacher_terms(OpenAITeacher(**{"kind": "openai", "model": "gpt-4o-mini", **settings}))


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


@pytest.mark.parametrize("model", ["o3-mini", "gpt-5-nano", "openai/o1"])
def test_the_plan_counts_reasoning_tokens(model):
    """Reasoning tokens are requested and charged on top."""
    for mode in ("realtime", "batch"):
        price = {"prompt": 1.0, "completion": 2.0}
        teacher = {"kind": "openai", "model": model, "mode": mode, "price": price}
        asked = [question("a" * 42), question("b" * 84, "yes", "no")]
        thinking = plan.plan_stage("relabel", asked, plan.teacher_terms(OpenAITeacher(**teacher)))
        plain = plan.plan_stage("relabel", asked, plan.teacher_terms(OpenAITeacher(**{**teacher, "model": "gpt-4o"})))
        most = [
            most_completion_tokens(one, Abilities(completion_tokens=True)) - most_completion_tokens(one, Abilities())
            for one in asked
        ]
        assert thinking.completion_tokens - plain.completion_tokens == sum(most) > 1000
        assert thinking.cost_usd - plain.cost_usd == pytest.approx(sum(most) * 2e-6)


def test_without_a_limit_a_minute_concurrency_bounds_the_time():
    quick, slow = (plan.plan_stage("generate", [question("a")] * 64, plan.Terms(None, size)) for size in (64, 16))
    assert slow.seconds == pytest.approx(4 * quick.seconds)
    assert quick.cost_usd is None


def test_a_total_is_known_if_all_its_stages_are():
    one = plan.StagePlan("generate", 10, 4, 100, 50, 0.5, 30.0)
    two = plan.StagePlan("relabel", 20, None, 200, 0, 0.25, 60.0)
    assert plan.total([one, two]) == plan.StagePlan("total", 30, None, 300, 50, 0.75, 90.0)
    assert plan.total([one, replace(two, cost_usd=None, seconds=None)]).cost_usd is None
    assert plan.total([one, one]).known == 8
    assert plan.total([]).cost_usd is None


def test_a_finished_job_has_no_further_cost(job):
    """If all texts exist, relabelling is planned from the run's own request table."""
    generated = list(generate.plan_requests(job, generate.next_counts(job, [], {})))
    asked = [
        question(f"of which class is text {i}?", "yes", "no") for i in range(job.questions.times(5) + job.teacher_tests)
    ]
    texts = [written(job.labels[0], i, kept=i < 5) for i in range(8)]
    guessed = plan.plan(job)[1]
    store = LedgerStore(job.config.ledger.uri)
    store.commit(generated, [Response(request.request_id, "a text") for request in generated])
    job.run.write(Example, "generated", texts)
    now = plan.plan(job)[1]
    assert (now.requests, now.known) == (len(asked), None)
    assert now.requests < guessed.requests
    job.run.write(Request, "relabel", asked[:7])  # a run that was stopped
    store.commit(asked[:5], [Response(request.request_id, choice_logprobs=(0.0, -1.0)) for request in asked[:5]])
    assert plan.plan(job)[1].known == 5
    job.run.write(Request, "relabel", asked)
    store.commit(asked, [Response(request.request_id, choice_logprobs=(0.0, -1.0)) for request in asked])
    terms = http_terms(concurrency=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "teacher_terms", lambda teacher: terms)
        assert plan.total(plan.plan(job)).cost_usd == 0
    assert [stage.stage for stage in plan.plan(job, ["relabel"])] == ["relabel"]
    assert plan.plan(job, ["finetune", "evaluate"]) == []


def test_the_stated_cost_never_exceeds_the_budget(job, monkeypatch):
    def asked(**settings):
        teacher = OpenAITeacher(kind="openai", model="gpt-4o-mini", **settings)
        costly = [plan.StagePlan("generate", 10, 0, 100, 50, 8.0, 30.0)]
        plan.ask_first(replace(job, config=job.config.model_copy(update={"teacher": teacher})), costly, yes=False)

    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(InputError, match=r"may cost about \$8.00"):
        asked()
    with pytest.raises(InputError, match=r"all of its budget of \$6.00"):
        asked(budget_usd=6)
    asked(budget_usd=4)


def shown_plan(job, monkeypatch, terms):
    stream = io.StringIO()
    monkeypatch.setattr(plan, "teacher_terms", lambda teacher: terms)
    told = replace(job, terminal=Terminal(Console(file=stream, width=140)))
    plan.print_plan(told, plan.plan(told))
    return stream.getvalue()


def test_a_plan_warns_of_unused_seeds_and_foreign_languages(job):
    assert plan.remarks(job) == []
    fixed = [*job.data.seeds, *(LabelledText(f"more {i}", f"more {i}", job.labels[i % 3]) for i in range(9))]
    seeds = tuple(Seed(text=one.text, label=one.label) for one in fixed)
    (surplus,) = plan.remarks(replace(job, task=job.task.model_copy(update={"seeds": seeds})))
    assert surplus == f"task.seeds_per_class = 2: 9 of the task's {len(fixed)} seeds are not used; raise it to use them"
    (foreign,) = plan.remarks(replace(job, task=job.task.model_copy(update={"language": "de"})))
    assert "the task's language is 'de'" in foreign
    assert "the embedded teacher, the embedded student" in foreign
    student = job.config.student.model_copy(update={"model": "owner/multilingual"})
    ours = replace(job, config=job.config.model_copy(update={"student": student}))
    (foreign,) = plan.remarks(replace(ours, task=job.task.model_copy(update={"language": "de", "licence": "CC0"})))
    assert "embedded student" not in foreign
    for language in ("en", "en-GB"):
        assert plan.remarks(replace(job, task=job.task.model_copy(update={"language": language}))) == []


def test_the_embedded_teacher_costs_nothing_and_its_speed_is_unknown(job, monkeypatch):
    rows = shown_plan(job, monkeypatch, plan.teacher_terms(job.config.teacher)).splitlines()
    (total,) = [row.split() for row in rows if row.startswith("total")]
    assert total[-2:] == ["$0.00", "-"]


def test_an_endpoint_has_a_price_and_a_time(job, monkeypatch):
    terms = http_terms(concurrency=64, requests_per_minute=60)
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


def test_an_own_server_has_no_price_until_the_config_names_one(job, monkeypatch):
    text = shown_plan(job, monkeypatch, http_terms(**OWN_SERVER))
    assert text.count("price unknown") == 3
    assert "set teacher.price" in text
    named = http_terms(**OWN_SERVER, price={"prompt": 0.1, "completion": 0.2})
    assert "price unknown" not in shown_plan(job, monkeypatch, named)
