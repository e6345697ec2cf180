"""What the stages decide before any cluster is asked: plans, arms, usage."""

from pathlib import Path

import pytest

from jobs import finetune, generate, plan, report
from jobs.asking import Usage
from jobs.job import prepare
from jobs.terminal import Terminal
from potstill.config import parse
from potstill.errors import StageError
from potstill.rows import Example, Prediction, from_table, to_table
from potstill.scores import Difference, Interval, score

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
    assert Usage(1, 1, 0, 10, 5, 0.1, 2.0) + Usage(2, 0, 1, 20, 5, 0.0, 1.0) == Usage(3, 1, 1, 30, 10, 0.1, 3.0)


def test_a_report_survives_its_file(job):
    rows = [Prediction(str(i), job.labels[i % 3], (0.6, 0.2, 0.2), job.labels[0]) for i in range(30)]
    scores = score(rows, job.labels, resamples=100)
    result = report.Report("mailroom-x", {"distilled": scores, "seeds_only": scores}, "seeds_only", difference(0.02))
    assert report.Report.from_json(result.as_json()) == result
    assert from_table(to_table(rows, Prediction), Prediction) == rows


def difference(gain: float, low: float = -0.1, high: float = 0.2) -> Difference:
    return Difference(Interval(gain, low, high), Interval(gain, low, high), 0.5)


def test_the_verdict_says_when_it_may_be_chance():
    def words(**interval):
        return report.verdict(report.Report("r", {}, "seeds_only", difference(**interval)))

    assert "0.020 macro-F1 above" in words(gain=0.02)
    assert "may be chance" in words(gain=0.02)
    assert "may be chance" not in words(gain=0.1, low=0.05)
    assert "0.100 macro-F1 below" in words(gain=-0.1, high=-0.05)
