"""Printed results: conclusions over students and training seeds, and a report that needs only its run."""

import os

import numpy as np
import pytest

from jobs.report.result import PAGE, RunReport, gain_over_repeats, score_columns, score_rows, verdict
from jobs.run import data as loading
from jobs.runtime import torch_worker
from jobs.show import show
from jobs.stages import predict as evaluation
from jobs.stages.evaluate import on_this_node, strongest
from jobs.tracking.server import TrackingError
from potstill.errors import InputError, StageError
from potstill.measures.scores import Difference, Interval, score
from potstill.rows import Prediction, from_table, to_table


def test_a_report_survives_its_file(job):
    rows = [Prediction(str(i), job.labels[i % 3], (0.6, 0.2, 0.2), job.labels[0]) for i in range(30)]
    scores = score(rows, job.labels, resamples=100)
    result = RunReport("mailroom-x", {"distilled": scores, "seeds_only": scores}, "seeds_only", difference(0.02))
    job.run.write_json("report", result)
    assert RunReport.from_json(job.run.read_json("report")) == result
    assert from_table(to_table(rows, Prediction), Prediction) == rows


def test_a_report_of_repeats_has_their_mean_and_deviation(job):
    right = [Prediction(str(i), job.labels[i % 3], (0.6, 0.2, 0.2), job.labels[i % 3]) for i in range(30)]
    wrong = [Prediction(str(i), job.labels[i % 3], (0.6, 0.2, 0.2), job.labels[0]) for i in range(30)]
    good, bad = (score(rows, job.labels, resamples=100) for rows in (right, wrong))
    scores = {"distilled": good, "distilled-seed1": bad, "seeds_only": bad, "seeds_only-seed1": bad}
    result = RunReport("r", {**scores, "seeds_regression": bad}, "seeds_only", difference(0.02))
    assert score_columns(result)[-1] == "macro-F1 over 2 training seeds"
    rows = {row[0]: row[-1] for row in score_rows(result)}
    assert rows["distilled"] == f"{(1 + 1 / 6) / 2:.3f} ± {(1 - 1 / 6) / 2**0.5:.3f}"
    assert rows["seeds, fine-tuned"] == "0.167 ± 0.000"
    assert rows["seeds, regression on embeddings"] == ""


def test_the_conclusion_is_drawn_over_all_training_seeds(job):
    """By the first seed alone the regression would be the baseline, and distilling would gain nothing."""

    def scored(wrong):
        rows = [(job.labels[i % 3], job.labels[(i + (i < wrong)) % 3]) for i in range(30)]
        return score(
            [Prediction(str(i), a, (0.6, 0.2, 0.2), b) for i, (a, b) in enumerate(rows)], job.labels, resamples=100
        )

    distilled, alone = ["distilled", "distilled-seed1"], ["seeds_only", "seeds_only-seed1"]
    scores = dict(zip([*distilled, *alone], map(scored, [12, 0, 15, 3]), strict=True)) | {
        "seeds_regression": scored(12)
    }
    assert strongest(scores) == "seeds_only"
    assert strongest({name: one for name, one in scores.items() if "seed1" not in name}) == "seeds_regression"
    value = {name: one.macro_f1.value for name, one in scores.items()}
    gains = [value["distilled"] - value["seeds_only"], value["distilled-seed1"] - value["seeds_only-seed1"]]
    result = RunReport("r", scores, "seeds_only", difference(gains[0]))
    assert gain_over_repeats(result) == (pytest.approx(np.mean(gains)), pytest.approx(np.std(gains, ddof=1)))
    assert f"over 2 training seeds distilling gains {np.mean(gains):+.3f} ± " in verdict(result)
    over_regression = RunReport("r", scores, "seeds_regression", difference(0.0))
    mean = (value["distilled"] + value["distilled-seed1"]) / 2 - value["seeds_regression"]
    assert gain_over_repeats(over_regression)[0] == pytest.approx(mean)


def test_many_students_are_not_loaded_at_once(job, monkeypatch):
    passes = []

    def asked(texts, arguments):
        passes.append(len(arguments["students"]))
        return {name: [[0.2, 0.5, 0.3]] * len(texts) for name in arguments["students"]}

    monkeypatch.setattr(evaluation, "_ask", asked)
    monkeypatch.setattr("actors.student_folder.check_classes", lambda *_: None)
    students = {f"student-{i}": f"/folder/{i}" for i in range(18)}
    found = evaluation.predict(students, job.data.test, job.labels)
    assert list(found) == list(students)
    assert {len(rows) for rows in found.values()} == {len(job.data.test)}
    assert max(passes) == evaluation.TOGETHER
    assert sum(passes) == 18


def test_a_report_needs_no_data(job, monkeypatch, capsys):
    """The number of test texts is the one at the time of scoring."""
    monkeypatch.setattr(loading, "load", lambda config: pytest.fail("the data was read"))
    with pytest.raises(InputError, match="has no report yet; `potstill distill CONFIG` continues it"):
        show(job.config, job.run)
    rows = [Prediction(str(i), job.labels[i % 3], (0.6, 0.2, 0.2), job.labels[0]) for i in range(12)]
    scores = score(rows, job.labels, resamples=100)
    result = RunReport("mailroom-x", {"distilled": scores, "seeds_only": scores}, "seeds_only", difference(0.02))
    job.run.write_json("report", result)
    job.run.write_text(PAGE, "<p>as evaluation wrote it</p>")
    monkeypatch.setattr("jobs.show.stage_rows", lambda job: [])
    show(job.config, job.run, open_it=False)
    assert "mailroom: 12 test texts" in capsys.readouterr().out


def difference(gain: float, low: float = -0.1, high: float = 0.2) -> Difference:
    return Difference(Interval(gain, low, high), Interval(gain, low, high), 0.5)


def test_the_verdict_reports_a_difference_that_may_be_chance():
    def words(**interval):
        return verdict(RunReport("r", {}, "seeds_only", difference(**interval)))

    assert "0.020 macro-F1 above" in words(gain=0.02)
    assert "p = 0.500" in words(gain=0.02)
    assert "no significant difference" in words(gain=0.02)
    assert "no significant difference" not in words(gain=0.1, low=0.05)
    assert "0.100 macro-F1 below" in words(gain=-0.1, high=-0.05)


@pytest.mark.slow
def test_a_lost_registration_is_an_outage_not_a_crash(ray_cluster, tmp_path):
    def die(**student):
        os._exit(1)

    def refuse(**student):
        raise StageError("no student in there")

    assert torch_worker.ask("ready")  # the job's own process is still running
    with pytest.raises(TrackingError, match="its process was lost"):
        on_this_node(die, name="mailroom-student")
    with pytest.raises(StageError, match="no student in there"):
        on_this_node(refuse, name="mailroom-student")
