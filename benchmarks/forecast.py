"""Do the teacher's votes tell beforehand how far synthetic texts fall behind real ones? Each task left out in turn.

    POTSTILL_HOME=PLACE python benchmarks/forecast.py --data-dir DIR --json forecast.json

``DIR/<task>/{train,test}.parquet`` of the config's tasks; those that DIR lacks are left out. Task by task ``potstill
study`` runs, then ``potstill assess`` (about 14,600 and 6,600 requests for all fourteen), and the line of
``potstill/study/forecast.py`` on its declared predictors is held against saying the mean of the other tasks. The line alone is
judged here: where it errs more than the mean, ``potstill assess`` says the mean. Every task is a study of its own, so the
same command goes on with a benchmark that broke off, and with more ``--tasks`` it does those that are new. PLACE should
hold nothing else: gaps are read as ``potstill assess`` reads them, over all finished studies of the storage, and a task
that is assessed there is not assessed again (``texts`` says on how many).

``--earlier FILE`` adds the tasks of a former ``--json`` that this run leaves out: of another machine, whose PLACE is gone.
It must be of the same teacher and settings. The precision that "auto" picks may still differ from machine to machine.
``--judge FILE`` in place of ``--data-dir`` runs nothing: the tasks of a former ``--json``, or its ``--tasks``, are judged
again, also with each of them left out altogether.

The mean has no rank correlation: a left-out mean falls as the left-out gap rises, so its rho would be -1 on any data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.backends.identity import identify
from jobs import assess
from jobs.runtime import paths
from jobs.runtime.terminal import Terminal
from potstill import draws, task
from potstill.config import Config, TaskRef
from potstill.errors import InputError, PotstillError, Problem
from potstill.measures.subjectivity import spearman
from potstill.study import assessment, sources
from potstill.study.config import StudyConfig, cell_config, load
from potstill.study.forecast import FEWEST, PREDICTORS, Studied, leave_one_out, means_of_others, usable

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "conf/study-forecast.yaml"
RESAMPLES = 1000  # of the tasks
PLACES = {"name", "tasks", "data_dir", "storage", "ledger", "tracking"}  # of a study, without a say in its figures


def judge(studied: Sequence[Studied]) -> dict[str, Any]:
    """The figures over the tasks that have the predictors; ``None`` for each where they are fewer than a forecast needs.

    ``error``: mean absolute error of the left-out forecasts in macro-F1 (a fraction of 1), ``error_of_mean``: of the means of the
    others. Intervals are 95 % percentile bootstrap ones: tasks are drawn with their errors and forecasts as they are, and
    no line is fitted again. Resamples whose forecasts or gaps are all equal have no rho and are left out of its interval.
    """
    names, known = usable(studied)
    if len(known) < FEWEST:
        unknown = dict.fromkeys(("error", "error_of_mean", "error_minus_mean", "rank_correlation"))
        return {"tasks": len(known), "predictors": list(names), **unknown, "rows": to_rows(studied, {})}
    gaps = np.array([one.gap for one in known])
    said = leave_one_out(np.array([[one.diagnostics[name] for name in names] for one in known]), gaps)
    errors, of_mean = abs(said - gaps), abs(means_of_others(gaps) - gaps)
    picks = draws.generator(0, "forecast").integers(len(gaps), size=(RESAMPLES, len(gaps)))
    rho, p_value = spearman(said, gaps)
    resampled = [spearman(said[pick], gaps[pick])[0] for pick in picks]
    low, high = _bounds(np.array([one for one in resampled if one is not None]))
    least, most = _bounds((errors - of_mean)[picks].mean(axis=1))
    return {
        "tasks": len(known),
        "predictors": list(names),
        "error": float(errors.mean()),
        "error_of_mean": float(of_mean.mean()),
        "error_minus_mean": {"value": float((errors - of_mean).mean()), "low": least, "high": most},
        "rank_correlation": {"rho": rho, "p": p_value, "low": low, "high": high},
        "rows": to_rows(studied, {one.task: float(value) for one, value in zip(known, said, strict=True)}),
    }


def to_rows(studied: Sequence[Studied], said: dict[str, float]) -> list[dict[str, Any]]:
    """A row a task: its gap, its diagnostics, what was forecast for it (``said``) and the absolute error of that."""
    return [
        {
            "task": one.task,
            "gap": one.gap,
            "alpha": one.diagnostics.get("alpha"),
            "entropy": one.diagnostics.get("entropy"),
            "forecast": said.get(one.task),
            "error": abs(said[one.task] - one.gap) if one.task in said else None,
        }
        for one in studied
    ]


def _bounds(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    if not len(values):
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def choose(study: StudyConfig, data_dir: Path, named: str | None, texts: int) -> dict[str, TaskRef]:
    """The tasks to run by name: ``named`` ones with commas between, or all of the study that ``data_dir`` has.

    Raises ``InputError`` with all that is wrong with the options, since the study takes hours before the next one is read.
    """
    known = {task.read(task.find(one.preset)).name: one for one in study.tasks}
    here = [
        name for name in known if all((data_dir / name / f"{part}.parquet").is_file() for part in ("train", "test"))
    ]
    wanted = here if named is None else named.split(",")
    fewest, most = assessment.FEWEST_TEXTS, assessment.MOST_TEXTS
    problems = []
    if not here:
        problems.append(
            Problem(f"--data-dir = {str(data_dir)!r}", f"has none of the study's tasks: {', '.join(known)}")
        )
    elif unknown := [name for name in wanted if name not in here]:
        problems.append(Problem(f"--tasks = {named!r}", f"{', '.join(unknown)}: must be some of {', '.join(here)}"))
    if not fewest <= texts <= most:
        problems.append(Problem(f"--texts = {texts}", f"must be from {fewest} to {most:,}"))
    if len(study.teachers) > 1:
        problems.append(Problem("--config", f"has {len(study.teachers)} teachers; a forecast is of one"))
    if problems:
        raise InputError(problems)
    return {name: known[name] for name in wanted}


def to_config(study: StudyConfig, reference: TaskRef) -> Config:
    """What ``potstill assess`` is given for a task of the study: the study's own settings."""
    return cell_config(study, reference, sources.find("promptmix"), next(iter(study.teachers)), 0, classes=2)


def run(place: Path, data_dir: Path, chosen: dict[str, TaskRef], configs: dict[str, Config], texts: int) -> None:
    """``potstill study`` on each task, then ``potstill assess`` where it was not assessed yet.

    The study finds its finished cells and does not make them again.
    """
    for name, config in configs.items():
        only = json.dumps([chosen[name].model_dump(mode="json")])
        _potstill("study", str(place), "--set", f"data_dir={data_dir}", "--set", f"tasks={only}", "--yes")
        if name in read_assessments(config):
            continue
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / f"{name}.yaml"
            written.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"search"})))
            _potstill("assess", str(written), "--texts", str(texts), "--yes")


def read_assessments(config: Config) -> dict[str, dict[str, Any]]:
    """The ``assess.json`` of every task that was assessed in the config's storage with its teacher, by task."""
    return {one["task"]: one for one in assess.others(config)}


def _potstill(*arguments: str) -> None:
    """Run a command of potstill's and end with it where it fails."""
    done = subprocess.run([sys.executable, "-m", "jobs", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        why = f"potstill {arguments[0]} ended with exit code {done.returncode}"
        sys.exit(f"error: {why}; the same command goes on from there, --tasks leaves tasks out")


def to_settings(study: StudyConfig) -> dict[str, Any]:
    """What two runs must have in common for their tasks to be judged together: the study less its tasks and places, and
    which weights its teacher has."""
    (teacher,) = study.teachers.values()
    return {**study.model_dump(mode="json", exclude=PLACES), "weights": identify(teacher).weights_digest}


def read_former(option: str, path: Path) -> tuple[dict[str, tuple[Studied, int]], dict[str, Any]]:
    """The tasks of a former ``--json`` with the number of texts asked about, by name, and its settings.

    Raises ``InputError``, which names the ``option``, where the file is none of this script's.
    """
    try:
        former = json.loads(path.read_text())
        tasks = {
            row["task"]: (
                Studied(row["task"], row["gap"], {n: row[n] for n in PREDICTORS if row[n] is not None}),
                row["texts"],
            )
            for row in former["rows"]
        }
        return tasks, dict(former["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = Problem(f"{option} = {str(path)!r}", f"is no --json of this script ({type(error).__name__}: {error})")
        raise InputError([problem]) from None


def read_earlier(path: Path, settings: dict[str, Any]) -> dict[str, tuple[Studied, int]]:
    """The tasks of ``--earlier``. Raises ``InputError`` where the file is none of this script's or is of other ``settings``."""
    tasks, theirs = read_former("--earlier", path)
    if differs := sorted(name for name in {*theirs, *settings} if theirs.get(name) != settings.get(name)):
        message = f"has another {', '.join(differs)} than this run; leave it out"
        raise InputError([Problem(f"--earlier = {str(path)!r}", message)])
    return tasks


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures. ``missing``: tasks of which the teacher's votes or the gap are not known; ``seconds``: of this run, which
    may have found much of it done. ``earlier`` of a row: it is of ``--earlier``."""
    started, data_dir = time.monotonic(), options.data_dir.resolve()
    study = load(options.config, [f"data_dir={data_dir}"])
    with contextlib.chdir(ROOT):
        study = paths.make_study_absolute(study)
    chosen = choose(study, data_dir, options.tasks, options.texts)
    configs = {name: to_config(study, reference) for name, reference in chosen.items()}
    settings = to_settings(study)
    earlier = {} if options.earlier is None else read_earlier(options.earlier, settings)
    run(options.config.resolve(), data_dir, chosen, configs, options.texts)
    like = next(iter(configs.values()))  # storage and teacher are the same in all
    assessed = read_assessments(like)
    found = [one for one in assess.studied(like) if one.task in chosen]
    here = {one.task for one in found}
    added = {name: one for name, one in earlier.items() if name not in here}
    figures = judge([*found, *(one for one, _ in added.values())])
    for row in figures["rows"]:
        row["earlier"] = row["task"] in added
        row["texts"] = added[row["task"]][1] if row["earlier"] else assessed[row["task"]]["diagnosis"]["texts"]
    missing = sorted(set(chosen) - {row["task"] for row in figures["rows"]})
    return {**figures, "missing": missing, "seconds": time.monotonic() - started, "settings": settings}


def measure_again(path: Path, named: str | None) -> dict[str, Any]:
    """The figures of a former ``--json``, or of its ``named`` tasks, and ``without``: those with each task left out altogether.

    Raises ``InputError`` for a file of another kind and for names that it lacks.
    """
    known, _ = read_former("--judge", path)
    wanted = list(known) if named is None else list(dict.fromkeys(named.split(",")))
    if unknown := [name for name in wanted if name not in known]:
        raise InputError([Problem(f"--tasks = {named!r}", f"{', '.join(unknown)}: must be some of {', '.join(known)}")])
    studied = [known[name][0] for name in wanted]
    figures = judge(studied)
    for row in figures["rows"]:
        row.update(earlier=True, texts=known[row["task"]][1])
    without = {one.task: judge([other for other in studied if other is not one]) for one in studied}
    for one in without.values():
        del one["rows"]
    return {**figures, "missing": [], "without": without}


def show(terminal: Terminal, figures: dict[str, Any]) -> None:
    """The tasks, and what they come to."""
    columns = ["gap", "alpha", "entropy", "forecast", "error"]
    shown = [
        (
            row["task"],
            *("-" if row[name] is None else f"{row[name]:.3f}" for name in columns),
            f"{row['texts']}{' (earlier)' if row['earlier'] else ''}",
        )
        for row in figures["rows"]
    ]
    terminal.say()
    terminal.table("each task left out in turn, macro-F1", ["task", *columns, "texts asked about"], shown)
    if figures["missing"]:
        terminal.say(f"without votes or gap: {', '.join(figures['missing'])}")
    if figures["error"] is None:
        known = f"{figures['tasks']} of {len(figures['rows'])} tasks have all that is needed"
        terminal.say(f"no figures: {known} (gap, {', '.join(figures['predictors'])}), and a forecast needs {FEWEST}")
        return
    less, rho = figures["error_minus_mean"], figures["rank_correlation"]
    terminal.say(
        f"{figures['tasks']} tasks, by {' and '.join(figures['predictors'])}: mean error {figures['error']:.3f}, the mean's "
        f"{figures['error_of_mean']:.3f}; the one less the other {_span(less['value'], less)}"
    )
    terminal.say(
        "no rank correlation: all forecasts or all gaps are equal"
        if rho["rho"] is None
        else f"rank correlation of forecasts with gaps {_span(rho['rho'], rho)}, p = {rho['p']:.2g}"
    )


def show_without(terminal: Terminal, without: dict[str, dict[str, Any]]) -> None:
    """The range of the figures over the tasks that were left out altogether."""
    known = [one for one in without.values() if one["error"] is not None and one["rank_correlation"]["rho"] is not None]
    if known:
        less = [one["error_minus_mean"]["value"] for one in known]
        rho = [one["rank_correlation"]["rho"] for one in known]
        terminal.say(
            f"with any one task left out altogether: error less the mean's {min(less):+.3f} to {max(less):+.3f}, rank "
            f"correlation {min(rho):+.3f} to {max(rho):+.3f}"
        )


def _span(value: float, interval: dict[str, Any]) -> str:
    return f"{value:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def main() -> None:
    """Run it, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--data-dir", type=Path, help="folder of tasks, DIR/<task>/{train,test}.parquet")
    given.add_argument("--judge", type=Path, help="a former --json, whose tasks are judged again; nothing is run")
    parser.add_argument("--tasks", help="some of the config's, with commas between; default: all that DIR has")
    parser.add_argument("--texts", type=int, default=100, help="texts of each task that the teacher votes on, at most")
    parser.add_argument("--earlier", type=Path, help="a former --json, whose tasks join those of this run")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the study; default: conf/study-forecast.yaml")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.judge and options.earlier:
        parser.error("--earlier adds tasks to a run, and --judge runs nothing")
    try:
        figures = measure_again(options.judge, options.tasks) if options.judge else measure(options)
    except PotstillError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    show(Terminal(), figures)
    show_without(Terminal(), figures.get("without", {}))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
