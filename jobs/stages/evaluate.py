"""Stage 4: score the students on the real test split and register the distilled one.

    potstill evaluate RUN

The distilled student is compared with the *strongest* of the baselines that cost no teacher (``FREE``), chosen on the test
split in their favour: fine-tuning on the seeds, logistic regression on frozen sentence embeddings of the seeds, of seeds
and class descriptions, contrastive training on seeds and descriptions, and self-training on unlabelled texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from jobs.report import figures, run_page
from jobs.report.printed import as_markdown, print_places, print_report, write_page
from jobs.report.result import RunReport, gain_over_repeats, over_repeats
from jobs.run.job import Job
from jobs.runtime.torch_worker import call_here, embed
from jobs.stages.finetune import DISTILLED, REAL_EQUAL, SEEDS_ONLY, SELF_TRAINED, START, real_texts
from jobs.stages.predict import predict
from jobs.stages.relabel import TEACHER
from jobs.tracking.registry import StudentCard, StudentVersion, register_student
from jobs.tracking.server import TrackingError, one_line
from potstill.draws import digest
from potstill.labels.prototypes import describe_classes
from potstill.measures import baselines
from potstill.measures.scores import Scores, compare, mean_and_deviation, score
from potstill.rows import Example, Prediction, to_table
from potstill.student.arms import repeats_of
from potstill.texts.diversity import as_rows

REGRESSION, DESCRIBED = "seeds_regression", "described_regression"
FREE = (SEEDS_ONLY, REGRESSION, DESCRIBED, START, SELF_TRAINED)
"""The baselines that cost no teacher."""


def evaluate(job: Job) -> None:
    """Run the stage; writes ``prediction/*`` and ``report.json``, logs to MLflow, registers the student."""
    with job.terminal.stage("evaluate") as line, job.tracker.stage("evaluate") as record:
        students = job.run.read_json("finetune")
        line.note(f"{len(job.data.test)} test texts")
        folders = {name: student["export"] for name, student in students.items()}
        predictions = predict(folders, job.data.test, job.labels, max_length=job.config.student.max_length)
        predictions |= regressions(job)
        if job.teacher_tests and job.run.has_file(f"prediction/{TEACHER}.parquet"):
            predictions[TEACHER] = job.run.read(Prediction, TEACHER)
        measure_real(job)
        for name, rows in predictions.items():
            job.run.write(Prediction, name, rows)
        result = summarise(job, predictions)
        job.run.write_json("report", result)
        for name, scores in result.scores.items():
            record.metrics({f"{name}/accuracy": scores.accuracy.value, f"{name}/macro_f1": scores.macro_f1.value})
        line.summary = f"{len(job.data.test)} test texts, {len(predictions)} students"
    print_report(job, result)
    _log(job, result, predictions)
    version = _register(job, result, students[DISTILLED])
    print_places(job, students[DISTILLED]["export"], version)


def summarise(job: Job, predictions: Mapping[str, list[Prediction]]) -> RunReport:
    """All scores, and the difference between the distilled student and the strongest baseline."""
    seed, resamples = job.config.seed, job.config.evaluate.resamples
    scores = {name: score(rows, job.labels, seed, resamples) for name, rows in predictions.items()}
    baseline = strongest(scores)
    difference = compare(predictions[baseline], predictions[DISTILLED], job.labels, seed, resamples)
    return RunReport(job.run.name, scores, baseline, difference)


def strongest(scores: Mapping[str, Scores]) -> str:
    """The baseline without a teacher that has the highest macro-F1 on the test split (the mean over its repeats)."""

    def mean(name: str) -> float:
        return mean_and_deviation([scores[one].macro_f1.value for one in repeats_of(name, scores)])[0]

    return max((name for name in FREE if name in scores), key=mean)


def regressions(job: Job) -> dict[str, list[Prediction]]:
    """Predictions of logistic regressions on frozen embeddings: of the seeds, and of seeds and class descriptions."""
    described = [*job.data.seeds, *describe_classes(job.task)]
    known, test = embed([row.text for row in described], [row.text for row in job.data.test])
    labels = [row.label for row in described]
    return {
        name: baselines.as_predictions(
            job.data.test, baselines.fit_predict(known[:count], labels[:count], test, job.labels), job.labels
        )
        for name, count in ((REGRESSION, len(job.data.seeds)), (DESCRIBED, len(described)))
    }


def measure_real(job: Job) -> None:
    """Add the diversity of as many real texts to ``diversity.json``, if a student of real texts is compared."""
    if REAL_EQUAL not in job.config.evaluate.compare or not job.data.train:
        return
    counts = Counter(example.label for example in job.run.read(Example, "relabelled") if example.kept)
    real = real_texts(job, counts)
    (vectors,) = embed([row.text for row in real])
    found = job.run.find_json("diversity") or {}  # older versions wrote none
    found["real"] = as_rows(vectors, [row.label for row in real], job.labels)
    job.run.write_json("diversity", found)


def digest_examples(examples: Sequence[Example]) -> str:
    """Hash of a run's texts, their labels and which of them the student saw."""
    return digest([[example.text, example.label, example.kept] for example in examples], size=8)


def _headline(result: RunReport) -> dict[str, float]:
    """The scores by which a student is tracked and registered."""
    distilled = result.scores[DISTILLED]
    return {
        "accuracy": distilled.accuracy.value,
        "macro_f1": distilled.macro_f1.value,
        "macro_f1_low": distilled.macro_f1.low,
        "macro_f1_high": distilled.macro_f1.high,
        "baseline_macro_f1": result.scores[result.baseline].macro_f1.value,
    }


def _log(job: Job, result: RunReport, predictions: Mapping[str, list[Prediction]]) -> None:
    tracker, distilled = job.tracker, result.scores[DISTILLED]
    tracker.metrics({**_headline(result), "gain_macro_f1": result.difference.macro_f1.value})
    if job.config.student.repeats > 1:
        mean, deviation = over_repeats(result, DISTILLED)
        gain, of_gain = gain_over_repeats(result)
        tracker.metrics({"macro_f1_mean": mean, "macro_f1_deviation": deviation})
        tracker.metrics({"gain_macro_f1_mean": gain, "gain_macro_f1_deviation": of_gain})
    examples = job.run.read(Example, "relabelled")
    tracker.dataset(
        f"{job.run.name}/examples",
        to_table(examples, Example),
        digest_examples(examples),
        "training",
        job.run.path,
    )
    tracker.dataset(
        f"{job.task.name}/test", to_table(predictions[DISTILLED], Prediction), job.data.test_digest(), "test"
    )
    tracker.table("examples", to_table(examples, Example))
    tracker.table("predictions", to_table(predictions[DISTILLED], Prediction))
    tracker.figure("confusion", figures.confusion(distilled.confusion, job.labels, "Confusion on the test texts"))
    tracker.figure("f1_by_class", run_page.class_changes(result, "F1 by class"))
    if bins := run_page.relabelled_by_alpha(examples):
        tracker.figure("relabelled_by_alpha", figures.relabelling(bins, "Relabelled texts by mixup ratio"))
    tracker.text("report.md", as_markdown(job, result))
    tracker.text("report.html", write_page(job, result))


def on_this_node(register: Callable[..., StudentVersion], **arguments: object) -> StudentVersion:
    """``register(**arguments)`` in another process. Raises its errors, or ``TrackingError`` if that process is lost."""
    import ray

    try:
        version: StudentVersion = call_here(register, **arguments)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:  # most likely killed for memory; the training and the scores are kept
        raise TrackingError(f"its process was lost ({one_line(error)})") from error
    return version


def _register(job: Job, result: RunReport, student: Mapping[str, str]) -> StudentVersion | None:
    """Register the distilled student, in another process: the driver imports no torch."""
    card = StudentCard(
        name=job.config.tracking.register_as or f"{job.task.name}-student",
        folder=student["export"],
        run_digest=job.run.digest,
        task=job.task.name,
        labels=job.labels,
        scores=_headline(result),
        test_digest=job.data.test_digest(),
        student_digest=student["digest"],
        teacher=job.config.teacher.model,
        input_example=[job.data.seeds[0].text, job.data.seeds[-1].text],
        max_length=job.config.student.max_length,
        lineage={"run": job.run.name},
    )
    return job.tracker.register(partial(on_this_node, register_student), card=card)
