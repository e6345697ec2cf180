"""The two papers' comparisons on your tasks: tasks x sources x students x repeats, one table at the end.

    potstill study conf/study-small.yaml --set data_dir=DIR

All texts of a teacher are asked of one pool through one ledger; then every task's students are trained, all sources of
a task in one fit (starting a fit takes 15 to 27 s, a student of some hundred texts as long). A finished cell is kept in
the study's folder under its digest, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.ledger.handle import Ledger
from actors.teachers.pool import TeacherPool
from jobs import preflight
from jobs.runtime.terminal import Terminal
from jobs.runtime.torch_worker import embed
from jobs.session import session
from jobs.stages import predict as evaluation
from jobs.stages import train as training
from jobs.stages.finetune import remarks
from jobs.study import page as study_page
from jobs.study import plan as study_plan
from jobs.study import report as study_report
from jobs.study.cells import Cell, FitGroup, groups, plan_cells
from jobs.study.folder import Finished, StudyFolder
from jobs.study.texts import SourceTexts, ask_teacher, pick_examples, read_texts, relabelling_of, usage_of
from jobs.tracking.tracker import Tracker
from potstill import draws
from potstill.errors import InputError, Problem, StageError
from potstill.measures import baselines
from potstill.measures.scores import score
from potstill.rows import Prediction
from potstill.student import second_opinion
from potstill.student.arms import Arm, from_texts
from potstill.student.arms import problems as arm_problems
from potstill.study.config import StudyConfig
from potstill.study.tables import REGRESSION
from potstill.task import LabelledText
from potstill.texts import diversity

STAGES = ("generate", "relabel", "finetune")
SEEDS_ONLY = "seeds_only"  # the arm that may have a say in others
MEASURED = 2000  # texts of a source whose diversity is measured, at most


def study(config: StudyConfig, verbose: bool = False, yes: bool = False) -> None:
    """Run what is left of a study and show its tables. Raises ``InputError`` before anything is asked or started."""
    started = time.monotonic()
    terminal = Terminal()
    cells, left, folder = _begin(config, terminal, verbose)
    _check(cells)
    failed: dict[str, str] = {}
    if left:
        if planned := study_plan.plan_sources(left):
            study_plan.show(planned, terminal)
            study_plan.confirm(planned, yes)
        study_job, *others = [replace(cell.job, run=folder.run) for cell in _one_a_teacher(cells)]

        def check_others() -> None:
            for other in others:
                preflight.check_cluster(other, STAGES)

        with session(study_job, "study", STAGES, check=check_others, study=config) as job:
            failed = _run(config, left, folder, job.tracker, started)
            folder.write_tables(time.monotonic() - started, finished=not failed)
            study_report.log(job.tracker, *folder.read())
            job.tracker.text("report.html", study_page.write(folder.run))
    else:
        folder.write_tables(folder.read()[0].seconds, finished=True)  # as this version of the code makes them
        study_page.write(folder.run)
    study_report.print_tables(terminal, *folder.read())
    study_report.print_places(terminal, folder)
    if failed:
        first = next(iter(failed.values()))
        raise StageError(
            f"{len(failed)} part(s) failed and are missing in the tables ({', '.join(failed)}), the first because: "
            f"{first}. The same command tries them again"
        )


def show_plan(config: StudyConfig, verbose: bool = False) -> None:
    """What is left of a study to ask, by source and by task. Nothing is asked or started; raises ``InputError``."""
    terminal = Terminal()
    _, left, _ = _begin(config, terminal, verbose)
    if planned := study_plan.plan_sources(left):
        study_plan.show(planned, terminal, by_task=True)
    else:
        terminal.say("no teacher is asked: " + ("all is done" if not left else "no source that is left needs one"))


def _begin(config: StudyConfig, terminal: Terminal, verbose: bool) -> tuple[list[Cell], list[Cell], StudyFolder]:
    """All cells, those that are left, and the folder; says which study it is. Makes nothing, and raises ``InputError``."""
    cells = plan_cells(config, terminal, verbose)
    folder = StudyFolder.of(config, cells)
    left = [cell for cell in cells if not folder.has(cell)]
    study_report.print_start(terminal, config, folder, len(cells), len(left))
    return cells, left, folder


def _check(cells: Sequence[Cell]) -> None:
    """Everything that shows without a cluster, once for each teacher, student and strategy. Raises ``InputError`` with all."""
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
    """Make the cells that are left. A source or a fit that fails on a task leaves the others to go on: (what, why)."""
    failed: dict[str, str] = {}
    # The pool's processes hold the CPUs or GPUs that training needs, so all asking comes first.
    for first in _one_a_teacher(left):
        teacher = first.job.config.teacher
        with TeacherPool(teacher, Ledger(config.ledger.uri), first.job.terminal.warn) as pool:
            for cell in _one_a_source(left):
                if cell.job.config.teacher != teacher:
                    continue
                study_report.print_cell(cell)
                try:
                    with tracker.stage(
                        _in_words(cell), {"potstill.task": cell.task.name, "potstill.source": cell.source.name}
                    ) as record:
                        ask_teacher(cell, pool, record)
                        _check_texts(cell)
                except StageError as error:
                    _note(failed, _in_words(cell), error, cell.job.terminal)
                    continue
                if cell.source.kind == "classifier" and not folder.has(cell):
                    part = "teacher_calibrated" if cell.source.calibrated else "teacher_raw"
                    folder.finish(cell, _finished(cell, cell.job.run.read(Prediction, part)))
    for group in groups([cell for cell in left if _in_words(cell) not in failed]):
        named = f"{group.job.task.name} repeat {group.cells[0].repeat + 1} {group.cells[0].student}"
        group.job.terminal.say(f"[bold]{named}[/]")
        try:
            with tracker.stage(named, {"potstill.task": group.job.task.name}) as record:
                # Not those that an earlier student's group has made.
                regressions = [cell for cell in _regressions(left, group) if not folder.has(cell)]
                _train(config, group, regressions, folder, record)
        except (StageError, InputError) as error:
            _note(failed, f"training {named}", error, group.job.terminal)
        folder.write_tables(time.monotonic() - started, finished=False)
    return failed


def _note(failed: dict[str, str], what: str, error: StageError | InputError, terminal: Terminal) -> None:
    """Put down a part that failed, and say that the others go on."""
    failed[what] = str(error).replace("\n", "; ")
    terminal.warn(f"{what}: {failed[what]}; the study goes on without it")


def _check_texts(cell: Cell) -> None:
    """Raises ``StageError`` where a source's texts can't be trained on: that would end the whole fit, the others' too."""
    if cell.source.kind != "texts":
        return
    arm = Arm(_arm_name(cell), read_texts(cell, cell.job.config.student).rows, seed=0)
    if found := arm_problems([arm], cell.job.labels):
        raise StageError("; ".join(map(str, found)))


def _regressions(cells: Sequence[Cell], group: FitGroup) -> list[Cell]:
    """The regressions on the seeds of the group's task and repeat; one, unless k_shot stands under several names."""
    return [
        cell
        for cell in cells
        if cell.student == REGRESSION and (cell.task.name, cell.repeat) == (group.job.task.name, group.cells[0].repeat)
    ]


def _train(config: StudyConfig, group: FitGroup, regressions: Sequence[Cell], folder: StudyFolder, record: Any) -> None:
    """Train and score all of a group's cells in one fit and one pass over the test texts."""
    job, student = group.job, group.cells[0].config
    assert student is not None
    texts = {cell.name: read_texts(cell, student) for cell in group.cells}
    arms = plan_arms(group, texts)
    with job.terminal.stage("finetune") as line:
        line.note(f"{len(arms)} students: {', '.join(arm.name for arm in arms)}")
        result = training.train(arms, student, job.labels, config.storage, verbose=job.verbose)
        for name, one in result.students.items():
            for remark in () if one.reused else remarks(one):
                job.terminal.warn(f"{name}: {remark}")
        line.summary = f"{result.trained} students trained on {result.workers} workers" + (
            f", {len(result.students) - result.trained} reused" if len(result.students) > result.trained else ""
        )
    with job.terminal.stage("evaluate") as line:
        line.note(f"{len(job.data.test)} test texts")
        names = {cell.name: _arm_name(cell) for cell in group.cells}
        predictions = evaluation.predict(
            {name: result.students[arm].export for name, arm in names.items()},
            job.data.test,
            job.labels,
            max_length=student.max_length,
        )
        measured = {cell.name: _sample(texts[cell.name].measured, cell) for cell in group.cells}
        seeds, test, *vectors = embed(
            [row.text for cell in regressions[:1] for row in cell.job.data.seeds],
            [row.text for row in (job.data.test if regressions else ())],
            *([row.text for row in rows] for rows in measured.values()),
        )
        # Before the others: a group that is done is not looked at again.
        for cell in regressions:
            probs = baselines.fit_predict(seeds, [row.label for row in cell.job.data.seeds], test, job.labels)
            folder.finish(cell, _finished(cell, baselines.as_predictions(job.data.test, probs, job.labels)))
        for cell, found in zip(group.cells, vectors, strict=True):
            trained = result.students[names[cell.name]]
            rows = measured[cell.name]
            spread = diversity.by_class(found, [row.label for row in rows], job.labels) if rows else []
            finished = _finished(cell, predictions[cell.name], texts[cell.name], config.examples)
            folder.finish(
                cell,
                replace(
                    finished, export=trained.export, training_seconds=trained.report.seconds, diversity=tuple(spread)
                ),
            )
            record.metrics({f"{cell.source.name}/macro_f1": finished.scores.macro_f1.value})
        line.summary = f"{len(job.data.test)} test texts, {len(group.cells) + len(regressions)} classifiers"


def plan_arms(group: FitGroup, texts: Mapping[str, SourceTexts]) -> list[Arm]:
    """One arm a cell; the seeds-only one first, also where only another cell wants its say."""
    student = group.cells[0].config
    assert student is not None
    anchored = second_opinion.wanted(student) and any(cell.source.anchored for cell in group.cells)
    arms = []
    if anchored or any(cell.source.kind == "seeds" for cell in group.cells):
        arms.append(Arm(SEEDS_ONLY, tuple(from_texts(group.seeds, group.job.labels)), seed=student.seed))
    for cell in group.cells:
        if cell.source.kind == "texts":
            own = texts[cell.name]
            anchor = SEEDS_ONLY if anchored and cell.source.anchored else None
            lineage = {"run": cell.job.run.name, "task": cell.task.name, "arm": cell.source.name}
            arms.append(
                Arm(
                    _arm_name(cell),
                    own.rows,
                    seed=student.seed,
                    anchor=anchor,
                    asked=own.asked if anchor else (),
                    lineage=lineage,
                )
            )
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
        examples=tuple(pick_examples(texts, job.labels, examples)) if texts else (),
    )


def _sample(rows: Sequence[LabelledText], cell: Cell) -> list[LabelledText]:
    return draws.sample(rows, MEASURED, cell.job.config.seed, "diversity") if len(rows) > MEASURED else list(rows)


def _one_a_teacher(cells: Sequence[Cell]) -> list[Cell]:
    """A cell of each teacher."""
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(cell.job.config.teacher.model_dump_json(), cell)
    return list(found.values())


def _one_a_source(cells: Sequence[Cell]) -> list[Cell]:
    """A cell of everything that has texts or asks: students share them."""
    return list({_in_words(cell): cell for cell in reversed(cells) if cell.source.kind != "seeds"}.values())[::-1]


def _in_words(cell: Cell) -> str:
    teacher = f" {cell.teacher}" if cell.teacher else ""
    return f"{cell.task.name} {cell.source.name} repeat {cell.repeat + 1}{teacher}"
