"""The two papers' comparisons on your tasks: tasks x sources x students x repeats, one table at the end.

    potstill study conf/study-small.yaml --set data_dir=DIR

Each teacher answers all requests through one pool and one ledger. Then each task's students are trained, all sources in
one fit, since starting a fit takes 15 to 27 s, as long as training on a few hundred texts. A finished cell is stored under
its digest in the study's folder, so the same command resumes a stopped study.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.markup import escape

from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool
from jobs import preflight
from jobs.run.job import Job
from jobs.runtime.terminal import Terminal
from jobs.runtime.torch_worker import embed
from jobs.session import session
from jobs.stages import predict as evaluation
from jobs.stages import train as training
from jobs.stages.finetune import remarks
from jobs.study import page as study_page
from jobs.study import plan as study_plan
from jobs.study import report as study_report
from jobs.study.cells import Cell, groups, plan_cells
from jobs.study.folder import Finished, StudyFolder
from jobs.study.texts import SourceTexts, ask_teacher, pick_examples, read_texts, relabelling_of, usage_of
from jobs.tracking.tracker import Tracker
from potstill import draws
from potstill.config.student import StudentConfig
from potstill.errors import InputError, Problem, StageError
from potstill.measures import baselines
from potstill.measures.scores import score
from potstill.rows import Prediction
from potstill.student import second_opinion
from potstill.student.arms import Arm, from_texts
from potstill.student.arms import problems as arm_problems
from potstill.study.config import StudyConfig
from potstill.study.tables import REGRESSION, read_study
from potstill.task import LabelledText
from potstill.texts import diversity

STAGES = ("generate", "relabel", "finetune")
SEEDS_ONLY = "seeds_only"  # the arm that may influence others
MEASURED = 2000  # most texts per source whose diversity is measured


def study(config: StudyConfig, verbose: bool = False, yes: bool = False) -> None:
    """Compute the missing cells of a study and print its tables. Raises ``InputError`` before any work starts."""
    started = time.monotonic()
    terminal = Terminal()
    cells, left, folder = _begin(config, terminal, verbose)
    _check(cells)
    failed: dict[str, str] = {}
    if left:
        if planned := study_plan.plan_sources(left):
            study_plan.show(planned, terminal)
            study_plan.confirm(planned, yes)
        study_job, *others = [replace(cell.job, run=folder.run) for cell in _one_per_teacher(cells)]

        def check_others() -> None:
            for other in others:
                preflight.check_cluster(other, STAGES)

        with session(study_job, "study", STAGES, check=check_others, study=config) as job:
            failed = _run(config, left, folder, job.tracker, started)
            folder.write_tables(time.monotonic() - started, finished=not failed)
            study_report.log(job.tracker, *read_study(folder.run.path))
            job.tracker.text("report.html", study_page.write(folder.run))
    else:
        seconds = read_study(folder.run.path)[0].seconds
        folder.write_tables(seconds, finished=True)  # again, since the code may have changed
        study_page.write(folder.run)
    study_report.print_tables(terminal, *read_study(folder.run.path))
    terminal.say()
    terminal.say(f"page      {folder.run.path}/report.html")
    terminal.say(f"tables    {folder.run.path}/study/*.parquet (columns: potstill/study/tables.py)")
    if failed:
        first = next(iter(failed.values()))
        raise StageError(
            f"{len(failed)} part(s) failed and are missing in the tables ({', '.join(failed)}); the first error: {first}. "
            "Run the same command to retry them"
        )


def show_plan(config: StudyConfig, verbose: bool = False) -> None:
    """Print the remaining requests of a study by source and by task. Raises ``InputError``."""
    terminal = Terminal()
    _, left, _ = _begin(config, terminal, verbose)
    if planned := study_plan.plan_sources(left):
        study_plan.show(planned, terminal, by_task=True)
    else:
        terminal.say("no requests: " + ("no remaining source needs a teacher" if left else "the study is finished"))


def _begin(config: StudyConfig, terminal: Terminal, verbose: bool) -> tuple[list[Cell], list[Cell], StudyFolder]:
    """All cells, the unfinished ones, and the folder; prints the study's size. Writes nothing. Raises ``InputError``."""
    cells = plan_cells(config, terminal, verbose)
    folder = StudyFolder.of(config, cells)
    left = [cell for cell in cells if not folder.has(cell)]
    study_report.print_start(terminal, config, folder, len(cells), len(left))
    return cells, left, folder


def _check(cells: Sequence[Cell]) -> None:
    """Check each combination of teacher, student and strategy without a cluster. Raises ``InputError`` with all problems."""
    found: list[Problem] = []
    seen = set()
    for cell in cells:
        job = cell.job
        if cell.config is not None:
            job = replace(job, config=job.config.model_copy(update={"student": cell.config}))
        key = (job.config.teacher.model_dump_json(), job.config.student.model, job.config.augment.strategy)
        if key not in seen:
            seen.add(key)
            try:
                preflight.check(job, STAGES)
            except InputError as error:
                found += error.problems
    if found:
        raise InputError(dict.fromkeys(found))


def _run(
    config: StudyConfig, left: Sequence[Cell], folder: StudyFolder, tracker: Tracker, started: float
) -> dict[str, str]:
    """Compute the cells ``left``. Returns failed sources and fits with their errors; the others are completed."""
    failed: dict[str, str] = {}
    # All requests come first, since the pool's processes hold the CPUs or GPUs that training needs.
    for first in _one_per_teacher(left):
        teacher = first.job.config.teacher
        with TeacherPool(teacher, Ledger(config.ledger.uri), first.job.terminal.warn) as pool:
            for cell in _one_per_source(left):
                if cell.job.config.teacher != teacher:
                    continue
                cell.job.terminal.say(f"[bold]{escape(cell.texts_name)}[/]")
                tags = {"potstill.task": cell.task.name, "potstill.source": cell.source.name}
                try:
                    with tracker.stage(cell.texts_name, tags) as record:
                        ask_teacher(cell, pool, record)
                        _check_texts(cell)
                except StageError as error:
                    _record_failure(failed, cell.texts_name, error, cell.job.terminal)
                    continue
                if cell.source.kind == "classifier" and not folder.has(cell):
                    part = "teacher_calibrated" if cell.source.calibrated else "teacher_raw"
                    folder.finish(cell, _finished(cell, cell.job.run.read(Prediction, part)))
    for group in groups([cell for cell in left if cell.texts_name not in failed]):
        task, terminal = group[0].task.name, group[0].job.terminal
        fit = f"{task} repeat {group[0].repeat + 1} {group[0].student}"
        terminal.say(f"[bold]{escape(fit)}[/]")
        try:
            with tracker.stage(fit, {"potstill.task": task}) as record:
                _train(config, group, _regressions(left, group, folder), folder, record)
        except (StageError, InputError) as error:
            _record_failure(failed, f"training {fit}", error, terminal)
        folder.write_tables(time.monotonic() - started, finished=False)
    return failed


def _record_failure(failed: dict[str, str], part: str, error: StageError | InputError, terminal: Terminal) -> None:
    failed[part] = str(error).replace("\n", "; ")
    terminal.warn(f"{part}: {failed[part]}; the study continues without it")


def _check_texts(cell: Cell) -> None:
    """Raises ``StageError`` if a source's texts can't be trained on, since that would fail all sources of the fit."""
    if cell.source.kind != "texts":
        return
    arm = Arm(_arm_name(cell), read_texts(cell, cell.job.config.student).rows, seed=0)
    if found := arm_problems([arm], cell.job.labels):
        raise StageError("; ".join(map(str, found)))


def _regressions(cells: Sequence[Cell], group: Sequence[Cell], folder: StudyFolder) -> list[Cell]:
    """The unfinished regressions on the seeds of the group's task and repeat: one per source of seeds alone."""
    key = (group[0].task.name, group[0].repeat)
    regressions = [cell for cell in cells if cell.student == REGRESSION and (cell.task.name, cell.repeat) == key]
    return [cell for cell in regressions if not folder.has(cell)]


def _train(
    config: StudyConfig, group: Sequence[Cell], regressions: Sequence[Cell], folder: StudyFolder, record: Any
) -> None:
    """Train and score a group's cells in one fit and one pass over the test texts."""
    job, student = group[0].job, group[0].config
    assert student is not None
    texts = {cell.name: read_texts(cell, student) for cell in group}
    students = _fit(job, _arms(group, texts), student, config.storage)
    with job.terminal.stage("evaluate") as line:
        line.note(f"{len(job.data.test)} test texts")
        names = {cell.name: _arm_name(cell) for cell in group}
        predictions = evaluation.predict(
            {name: students[arm].export for name, arm in names.items()},
            job.data.test,
            job.labels,
            max_length=student.max_length,
        )
        measured = {cell.name: _sample(texts[cell.name].measured, cell) for cell in group}
        seeds, test, *vectors = embed(
            [row.text for cell in regressions[:1] for row in cell.job.data.seeds],
            [row.text for row in (job.data.test if regressions else ())],
            *([row.text for row in rows] for rows in measured.values()),
        )
        # Regressions first: a group whose students are all finished is not visited again.
        for cell in regressions:
            probs = baselines.fit_predict(seeds, [row.label for row in cell.job.data.seeds], test, job.labels)
            folder.finish(cell, _finished(cell, baselines.as_predictions(job.data.test, probs, job.labels)))
        for cell, found in zip(group, vectors, strict=True):
            trained = students[names[cell.name]]
            rows = measured[cell.name]
            spread = diversity.by_class(found, [row.label for row in rows], job.labels) if rows else ()
            finished = replace(
                _finished(cell, predictions[cell.name], texts[cell.name], config.examples),
                export=trained.export,
                training_seconds=trained.report.seconds,
                diversity=tuple(spread),
            )
            folder.finish(cell, finished)
            record.metrics({f"{cell.source.name}/macro_f1": finished.scores.macro_f1.value})
        line.summary = f"{len(job.data.test)} test texts, {len(group) + len(regressions)} classifiers"


def _fit(job: Job, arms: Sequence[Arm], student: StudentConfig, storage: str) -> Mapping[str, training.TrainedStudent]:
    with job.terminal.stage("finetune") as line:
        line.note(f"{len(arms)} students: {', '.join(arm.name for arm in arms)}")
        result = training.train(arms, student, job.labels, storage, verbose=job.verbose)
        for name, one in result.students.items():
            for remark in () if one.reused else remarks(one):
                job.terminal.warn(f"{name}: {remark}")
        reused = len(result.students) - result.trained
        line.summary = f"{result.trained} students trained on {result.workers} workers"
        line.summary += f", {reused} reused" if reused else ""
    return result.students


def _arms(group: Sequence[Cell], texts: Mapping[str, SourceTexts]) -> list[Arm]:
    """One arm per cell. The seeds-only arm comes first; it is added if an anchored source needs it."""
    student = group[0].config
    assert student is not None
    anchored = second_opinion.wanted(student) and any(cell.source.anchored for cell in group)
    arms = []
    if anchored or any(cell.source.kind == "seeds" for cell in group):
        seeds = max((cell.job.data.seeds for cell in group), key=len)  # some sources hide them
        arms.append(Arm(SEEDS_ONLY, tuple(from_texts(seeds, group[0].job.labels)), seed=student.seed))
    for cell in group:
        if cell.source.kind == "texts":
            lineage = {"run": cell.job.run.name, "task": cell.task.name, "arm": cell.source.name}
            arm = Arm(_arm_name(cell), texts[cell.name].rows, seed=student.seed, lineage=lineage)
            if anchored and cell.source.anchored:
                arm = replace(arm, anchor=SEEDS_ONLY, asked=texts[cell.name].asked)
            arms.append(arm)
    return arms


def _arm_name(cell: Cell) -> str:
    if cell.source.kind == "seeds":
        return SEEDS_ONLY
    return f"{cell.source.name}-{cell.teacher}" if cell.teacher else cell.source.name


def _finished(
    cell: Cell, predictions: Sequence[Prediction], texts: SourceTexts | None = None, examples: int = 0
) -> Finished:
    job = cell.job
    found = score(predictions, job.labels, job.config.seed, job.config.evaluate.resamples)
    return Finished(
        predictions=tuple(predictions),
        scores=found,
        usage=usage_of(cell),
        relabelling=relabelling_of(cell),
        texts=len(texts.measured) if texts else 0,
        seeds=len(job.data.seeds) if cell.source.seeds == "train" and cell.source.kind != "classifier" else 0,
        examples=tuple(pick_examples(texts, examples)) if texts else (),
    )


def _sample(rows: Sequence[LabelledText], cell: Cell) -> list[LabelledText]:
    return draws.sample(rows, MEASURED, cell.job.config.seed, "diversity") if len(rows) > MEASURED else list(rows)


def _first_of_each(cells: Iterable[Cell], key: Callable[[Cell], str]) -> list[Cell]:
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(key(cell), cell)
    return list(found.values())


def _one_per_teacher(cells: Sequence[Cell]) -> list[Cell]:
    return _first_of_each(cells, lambda cell: cell.job.config.teacher.model_dump_json())


def _one_per_source(cells: Sequence[Cell]) -> list[Cell]:
    """One cell for all students with the same texts. Seeds alone need none."""
    return _first_of_each((cell for cell in cells if cell.source.kind != "seeds"), lambda cell: cell.texts_name)
