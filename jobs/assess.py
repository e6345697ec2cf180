"""Assess a task before paying for it, from the teacher's votes on up to 300 texts.

    potstill assess conf/trec6.yaml --texts 100

The texts are the task's unlabelled ones, else those of the train split without their labels, else new ones from the
teacher. Each text takes four short questions, so 300 texts cost about as much as relabelling 600 with two votes. A
forecast needs tasks that were studied with the same teacher (``potstill/study/forecast.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from fsspec.core import url_to_fs

from actors.backends.identity import identify
from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool
from jobs import plan, preflight
from jobs.run.folder import Run
from jobs.run.job import Job
from jobs.runtime.progress import Meter
from jobs.runtime.terminal import Terminal
from jobs.runtime.torch_worker import embed
from jobs.session import session
from jobs.stages import generate
from jobs.stages.ask import Usage, ask
from potstill import draws
from potstill.config import Config
from potstill.errors import InputError, Problem, StageError
from potstill.labels import evidence
from potstill.labels import questions as relabelling
from potstill.labels.prototypes import class_prototypes, class_texts
from potstill.rows import Example, Request
from potstill.study import advice, assessment
from potstill.study.advice import Advice
from potstill.study.assessment import Diagnosis
from potstill.study.config import SourceRef
from potstill.study.forecast import PREDICTORS, Forecast, Studied, forecast
from potstill.study.tables import Study, read_study
from potstill.texts import diversity, repetition
from potstill.texts.repetition import Repetition

PART = "assess"
STAGES = ("generate", "relabel")  # an assessment needs what these need, since the teacher may have to generate texts
MOST_CLASSES = 20  # with more, the teacher chooses among a text's nearest ``relabel.neighbours`` classes


@dataclass(frozen=True, slots=True)
class SampledTexts:
    """The texts to ask about. ``labels``: of the train split, only for the learning curve; may be empty."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    origin: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """The content of ``assess.json``."""

    task: str
    teacher: str
    texts_from: str
    seeds: int
    diagnosis: Diagnosis | None
    seed_accuracy: float
    remote_clique: float | None
    chamfer: float | None
    repetition: Repetition
    learning_curve: dict[int, float]
    forecast: Forecast | str
    advice: Advice
    usage: Usage


def assess(config: Config, verbose: bool = False, yes: bool = False, most_texts: int = assessment.TEXTS) -> Assessment:
    """Ask about at most ``most_texts`` texts, evaluate and show the answers; writes ``<storage>/assess-<run>/``.

    Raises ``InputError`` before anything is asked or started, ``StageError`` if the teacher answers nothing.
    """
    _check(config, most_texts)
    job = preflight.prepare(config, STAGES, Terminal(), verbose)
    job = replace(job, run=Run(config.storage, f"assess-{job.run.name}"))
    texts = real_texts(job, most_texts)
    _confirm(job, texts, most_texts, yes)
    with session(job, PART, ["relabel"], describe=False) as tracked:
        tracker = tracked.tracker
        with TeacherPool(config.teacher, Ledger(config.ledger.uri), job.terminal.warn) as pool:
            found = _ask(tracked, pool, texts or _generated(tracked, pool, most_texts))
        job.run.write_json(PART, found)
        numbers = {**(asdict(found.diagnosis) if found.diagnosis else {}), "seed_accuracy": found.seed_accuracy}
        tracker.metrics({name: value for name, value in numbers.items() if value is not None})
        tracker.text("assess.json", json.dumps(found, indent=2, default=asdict))
    show(job, found, others(config, job.task.name))
    return found


def _check(config: Config, most_texts: int) -> None:
    """Raises ``InputError`` if the number of texts is out of range, with all problems of the config."""
    fewest, most = assessment.FEWEST_TEXTS, assessment.MOST_TEXTS
    if not fewest <= most_texts <= most:
        wrong = Problem(f"--texts = {most_texts}", f"must be from {fewest} to {most:,}")
        raise InputError([wrong, *preflight.problems(config, STAGES)])


def real_texts(job: Job, most: int) -> SampledTexts | None:
    """Up to ``most`` texts of the task, drawn by the data seed; None if it has no unlabelled or training texts."""
    seed = job.config.seed
    if job.data.unlabelled:
        sample = draws.sample(job.data.unlabelled, most, seed, PART)
        return SampledTexts(tuple(sample), (), "the task's unlabelled texts")
    if job.data.train:
        rows = draws.sample(job.data.train, most, seed, PART)
        return SampledTexts(tuple(r.text for r in rows), tuple(r.label for r in rows), "the train split without labels")
    return None


def _generated(job: Job, pool: TeacherPool, most: int) -> SampledTexts:
    """Up to ``most`` texts from the teacher."""
    examples, _ = generate.generate(_generating(job, most), pool)
    kept: list[Example] = [one for one in examples if one.kept]
    drawn = draws.sample(kept, most, job.config.seed, PART)
    return SampledTexts(tuple(one.text for one in drawn), (), "written by the teacher, since the task has no others")


def _generating(job: Job, most: int) -> Job:
    """The job that generates about ``most`` texts."""
    per_class = max(1, most // len(job.labels) // 2)
    augment = job.config.augment.model_copy(update={"per_class": per_class, "over_generate": 1.0})
    return replace(job, config=job.config.model_copy(update={"augment": augment}))


def _ask(job: Job, pool: TeacherPool, texts: SampledTexts) -> Assessment:
    task, seeds, config, labels = job.task, job.data.seeds, job.config, job.labels
    with job.terminal.stage(PART) as line, job.tracker.stage(PART) as record:
        line.note("embedding")
        vectors, of_seeds, of_classes = embed(texts.texts, [seed.text for seed in seeds], class_texts(task))
        requests, checks = _plan(job, texts, vectors, of_seeds, of_classes)
        meter = Meter(record.metrics)
        line.follow(meter.progress)
        expected = len(checks) + assessment.VOTES * len(texts.texts)
        answered, usage = ask(job, pool, PART, chain(checks, requests), expected, meter)
        raw = evidence.read_votes(task, answered.slice(0, len(checks)), len(seeds))
        votes = evidence.read_votes(task, answered.slice(len(checks)), len(texts.texts))
        if not np.isfinite(votes).any():
            raise StageError(f"{PART}: the teacher answered no question; see {job.run.path}/response")
        # Calibrated together: the seeds are too few to show the teacher's bias towards a class.
        probs = assessment.calibrated(np.concatenate([raw, votes]))
        seed_accuracy = assessment.accuracy(probs[: len(seeds)], [labels.index(seed.label) for seed in seeds])
        diagnosis = assessment.diagnose(probs[len(seeds) :])
        curve = advice.learning_curve(vectors, texts.labels, labels, config.seed) if texts.labels else {}
        line.summary = f"{len(texts.texts)} texts, {expected} questions"
    spread = diversity.by_class(vectors, labels[:1] * len(vectors), labels)[0]
    numbers = asdict(diagnosis) if diagnosis is not None else {}
    return Assessment(
        task.name,
        job.teacher.identity.model,
        texts.origin,
        len(seeds),
        diagnosis,
        seed_accuracy,
        spread.remote_clique,
        spread.chamfer,
        repetition.measure(texts.texts, [seed.text for seed in seeds], [row.text for row in job.data.test]),
        curve,
        forecast(studied(job.config, task.name), numbers),
        advice.advise(diagnosis, seed_accuracy, len(seeds), len(labels), curve),
        usage,
    )


def _plan(
    job: Job, texts: SampledTexts, vectors: np.ndarray, of_seeds: np.ndarray, of_classes: np.ndarray
) -> tuple[Any, list[Request]]:
    task, seeds = job.task, job.data.seeds
    centres = class_prototypes(of_seeds, relabelling.seed_columns(task, seeds), of_classes)
    most = len(job.labels) if len(job.labels) <= MOST_CLASSES else job.config.relabel.neighbours
    offered = relabelling.offer(task, vectors, centres, most)
    of_seed = relabelling.offer(task, of_seeds, centres, most)
    questions = assessment.VoteQuestions(task, seeds, job.teacher, job.config.seed)
    return questions.about_texts(texts.texts, offered), questions.about_seeds(of_seed)


def _confirm(job: Job, texts: SampledTexts | None, most: int, yes: bool) -> None:
    """Show the plan, and ask for confirmation if it may cost more than ``teacher.ask_above_usd``."""
    stages = [] if texts else plan.plan(_generating(job, most), ["generate"])
    count = len(texts.texts) if texts else most
    seeds, labels = job.data.seeds, job.labels[:MOST_CLASSES]
    questions = assessment.VoteQuestions(job.task, seeds, job.teacher, job.config.seed)
    each = list(questions.about_texts([seeds[0].text], [labels]))
    stages.append(plan.plan_stage(PART, each, plan.teacher_terms(job.config.teacher), times=count + len(seeds)))
    plan.print_stages(job, stages)
    plan.ask_first(job, stages, yes)


def others(config: Config, exclude: str = "") -> list[dict[str, Any]]:
    """The ``assess.json`` of every task except ``exclude`` that the same teacher assessed in this storage."""
    filesystem, root = url_to_fs(config.storage)
    model = identify(config.teacher).model
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(filesystem.glob(f"{root.rstrip('/')}/{PART}-*/{PART}.json")):
        with filesystem.open(path, "r") as file:
            one = json.load(file)
        if one["teacher"] == model and one["task"] != exclude and one["diagnosis"]:
            found[one["task"]] = one
    return list(found.values())


def studied(config: Config, exclude: str = "") -> list[Studied]:
    """Gap and diagnostics of every task except ``exclude`` that the same teacher both studied and assessed in this storage."""
    filesystem, root = url_to_fs(config.storage)
    model = identify(config.teacher).model
    gaps: dict[str, float] = {}
    for path in sorted(filesystem.glob(f"{root.rstrip('/')}/study-*/study.json")):
        try:
            study, tables = read_study(filesystem.unstrip_protocol(path.rsplit("/", 1)[0]))
            found = _gaps(study, tables["differences"].to_pylist(), model)
        except InputError:
            continue  # written by another version
        for task, gap in found:
            gaps[task] = max(gaps.get(task, gap), gap)
    return [
        Studied(one["task"], gaps[one["task"]], {n: v for n in PREDICTORS if (v := one["diagnosis"][n]) is not None})
        for one in others(config, exclude)
        if one["task"] in gaps
    ]


def _gaps(study: Study, differences: Sequence[dict[str, Any]], model: str) -> list[tuple[str, float]]:
    """(task, macro-F1 minus that of real data) of each synthetic source, if the study's reference is real data."""
    sources = {ref.name: ref.source for ref in map(SourceRef.model_validate, study.config["sources"])}
    teachers = {name for name, its in zip(study.teachers, study.models, strict=False) if its == model}
    if not study.finished or sources[study.reference].strategy != "real":
        return []
    return [
        (row["task"], row["macro_f1"])
        for row in differences
        if row["reference"] == study.reference
        and row["student"] == row["reference_student"]
        and row["teacher"] in teachers
        and row["macro_f1"] is not None
        and sources[row["source"]].synthetic
    ]


def show(job: Job, found: Assessment, before: Sequence[dict[str, Any]]) -> None:
    """Print the advice, the diagnostics beside those of other tasks, and the forecast."""
    say = job.terminal.say
    say()
    say(f"[bold]{found.task} with {found.teacher}: {found.advice.say}[/]")
    for sentence in found.advice.because:
        say(sentence)
    say()
    job.terminal.table("diagnostics", ["", "here", "other tasks, same teacher"], rows(found, before))
    say(f"on {found.texts_from}")
    say()
    say(forecast_in_words(found.forecast))
    say(f"kept in   {job.run.path}/{PART}.json")


NAMES = {
    "agreement": "votes for the most frequent class",
    "alpha": "alpha among votes",
    "sampled_agreement": "two samples agree",
    "entropy": "entropy (1: uniform)",
    "same_when_reordered": "same with classes reordered",
    "same_when_rephrased": "same when rephrased",
    "class_coverage": "coverage of the classes",
}


def rows(found: Assessment, before: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """One row per diagnostic: name, value, and the range over other tasks."""
    here = asdict(found.diagnosis) if found.diagnosis is not None else {}
    lines = [(title, here.get(name), [one["diagnosis"][name] for one in before]) for name, title in NAMES.items()]
    lines.append(("accuracy on the seeds", found.seed_accuracy, [one["seed_accuracy"] for one in before]))
    lines.append(("Remote Clique of the texts", found.remote_clique, [one["remote_clique"] for one in before]))
    lines.append(("Chamfer of the texts", found.chamfer, [one["chamfer"] for one in before]))
    shown = []
    for title, value, theirs in lines:
        known = [one for one in theirs if one is not None]
        span = f"{min(known):.2f} to {max(known):.2f} ({len(known)})" if known else "-"
        shown.append((title, "-" if value is None else f"{value:.2f}", span))
    return shown


def forecast_in_words(found: Forecast | str) -> str:
    """The forecast of synthetic against real data, or why there is none."""
    if isinstance(found, str):
        return f"No forecast of synthetic against real data: {found}."
    span = f"{found.gap.value:+.2f} [{found.gap.low:+.2f}, {found.gap.high:+.2f}]"
    start = f"Forecast of synthetic minus real, macro-F1: {span}"
    if not found.useful:
        errors = f"mean error {found.error:.3f} with votes, {found.error_of_mean:.3f} for the mean"
        return (
            f"{start}: the mean of {found.tasks} studied tasks, since votes predict no better (leave-one-out {errors})."
        )
    rho = "" if found.rank_correlation is None else f", rank correlation {found.rank_correlation:+.2f}"
    return (
        f"{start} from {' and '.join(found.predictors)} of {found.tasks} tasks; leave-one-out mean error "
        f"{found.error:.3f} (of the mean alone: {found.error_of_mean:.3f}){rho}."
    )
