"""Test, leaving one task out, whether the teacher's votes predict the gap between synthetic and real training texts.

    POTSTILL_HOME=PLACE python benchmarks/forecast.py --data-dir DIR --json forecast.json

``DIR/<task>/{train,test}.parquet`` of the config's tasks; tasks missing from DIR are skipped. For each task ``potstill
study`` runs, then ``potstill assess`` (about 14,600 and 6,600 requests for all fourteen). The regression line of
``potstill/study/forecast.py`` on its declared predictors is compared with the mean of the other tasks. Only the line is
evaluated here: where its error exceeds the mean's, ``potstill assess`` reports the mean. Each task is a separate study,
so the same command resumes an interrupted benchmark, and more ``--tasks`` only run the new ones. PLACE should contain
nothing else: like ``potstill assess``, this reads gaps from all finished studies of the storage, and tasks already
assessed there are not assessed again (``texts`` is the number of texts they were assessed on).

``--earlier FILE`` adds tasks of an earlier ``--json`` that this run does not include, for example from a machine whose
PLACE is gone. Teacher and settings must match. The precision that "auto" picks may still differ between machines.
``--judge FILE`` instead of ``--data-dir`` runs nothing: it evaluates the tasks of an earlier ``--json`` (or its
``--tasks``) again, also with each of them removed from the set.

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
RESAMPLES = 1000  # bootstrap resamples of the tasks
PLACES = {"name", "tasks", "data_dir", "storage", "ledger", "tracking"}  # study fields that do not affect its figures


def judge(studied: Sequence[Studied]) -> dict[str, Any]:
    """Return the figures over tasks that have the predictors; each is None if there are too few tasks for a forecast.

    ``error``: mean absolute error of the left-out forecasts in macro-F1 (a fraction of 1); ``error_of_mean``: the same
    for the mean of the other tasks. Intervals are 95 % percentile bootstrap intervals over tasks with fixed errors and
    forecasts; no line is refitted. Resamples with constant forecasts or gaps have no rho and do not enter its interval.
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
    """Return one row per task: gap, diagnostics, forecast (``said``) and its absolute error."""
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
    """Return the tasks to run by name: the comma-separated ``named`` ones, or all of the study that ``data_dir`` has.

    Raises ``InputError`` with every invalid option: a study takes hours, so none may surface later.
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
        problems.append(Problem("--config", f"has {len(study.teachers)} teachers; a forecast needs exactly one"))
    if problems:
        raise InputError(problems)
    return {name: known[name] for name in wanted}


def to_config(study: StudyConfig, reference: TaskRef) -> Config:
    """Return the config of ``potstill assess`` for a task, with the study's settings."""
    return cell_config(study, reference, sources.find("promptmix"), next(iter(study.teachers)), 0, classes=2)


def run(place: Path, data_dir: Path, chosen: dict[str, TaskRef], configs: dict[str, Config], texts: int) -> None:
    """Run ``potstill study`` on each task, then ``potstill assess`` on those not assessed yet.

    The study skips its finished cells.
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
    """Return, by task, every ``assess.json`` in the config's storage with its teacher."""
    return {one["task"]: one for one in assess.others(config)}


def _potstill(*arguments: str) -> None:
    """Run a potstill command; exit if it fails."""
    done = subprocess.run([sys.executable, "-m", "jobs", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        why = f"potstill {arguments[0]} ended with exit code {done.returncode}"
        sys.exit(f"error: {why}; run the same command to resume, use --tasks to skip tasks")


def to_settings(study: StudyConfig) -> dict[str, Any]:
    """Return the settings that two runs must share for a joint evaluation.

    These are the study without its tasks and locations, and the identity of the teacher's weights.
    """
    (teacher,) = study.teachers.values()
    return {**study.model_dump(mode="json", exclude=PLACES), "weights": identify(teacher).weights_digest}


def read_former(option: str, path: Path) -> tuple[dict[str, tuple[Studied, int]], dict[str, Any]]:
    """Read an earlier ``--json``: its tasks with their number of assessed texts, by name, and its settings.

    Raises ``InputError``, naming ``option``, if this script did not write the file.
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
        problem = Problem(
            f"{option} = {str(path)!r}", f"is not a --json file of this script ({type(error).__name__}: {error})"
        )
        raise InputError([problem]) from None


def read_earlier(path: Path, settings: dict[str, Any]) -> dict[str, tuple[Studied, int]]:
    """Read the tasks of ``--earlier``. Raises ``InputError`` if the file has another format or other ``settings``."""
    tasks, theirs = read_former("--earlier", path)
    if differs := sorted(name for name in {*theirs, *settings} if theirs.get(name) != settings.get(name)):
        message = f"has another {', '.join(differs)} than this run; omit the file"
        raise InputError([Problem(f"--earlier = {str(path)!r}", message)])
    return tasks


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compute all figures.

    ``missing``: tasks without teacher votes or gap; ``seconds``: time of this run, which may have reused earlier work;
    ``earlier`` of a row: whether it comes from ``--earlier``.
    """
    started, data_dir = time.monotonic(), options.data_dir.resolve()
    study = load(options.config, [f"data_dir={data_dir}"])
    with contextlib.chdir(ROOT):
        study = paths.make_study_absolute(study)
    chosen = choose(study, data_dir, options.tasks, options.texts)
    configs = {name: to_config(study, reference) for name, reference in chosen.items()}
    settings = to_settings(study)
    earlier = {} if options.earlier is None else read_earlier(options.earlier, settings)
    run(options.config.resolve(), data_dir, chosen, configs, options.texts)
    like = next(iter(configs.values()))  # all share storage and teacher
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
    """Evaluate an earlier ``--json`` or its ``named`` tasks; ``without``: the figures with each task removed.

    Raises ``InputError`` for a file of another format and for unknown task names.
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
    """Print the tasks and the figures."""
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
        known = f"{figures['tasks']} of {len(figures['rows'])} tasks have all inputs"
        terminal.say(f"no figures: {known} (gap, {', '.join(figures['predictors'])}), and a forecast needs {FEWEST}")
        return
    less, rho = figures["error_minus_mean"], figures["rank_correlation"]
    terminal.say(
        f"{figures['tasks']} tasks, by {' and '.join(figures['predictors'])}: mean error {figures['error']:.3f}, the mean's "
        f"{figures['error_of_mean']:.3f}; difference {_span(less['value'], less)}"
    )
    terminal.say(
        "no rank correlation: all forecasts or all gaps are equal"
        if rho["rho"] is None
        else f"rank correlation of forecasts with gaps {_span(rho['rho'], rho)}, p = {rho['p']:.2g}"
    )


def show_without(terminal: Terminal, without: dict[str, dict[str, Any]]) -> None:
    """Print the range of the figures over the removed tasks."""
    known = [one for one in without.values() if one["error"] is not None and one["rank_correlation"]["rho"] is not None]
    if known:
        less = [one["error_minus_mean"]["value"] for one in known]
        rho = [one["rank_correlation"]["rho"] for one in known]
        terminal.say(
            f"with any one task removed: error minus the mean's {min(less):+.3f} to {max(less):+.3f}, rank "
            f"correlation {min(rho):+.3f} to {max(rho):+.3f}"
        )


def _span(value: float, interval: dict[str, Any]) -> str:
    return f"{value:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def main() -> None:
    """Run the benchmark, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--data-dir", type=Path, help="folder of tasks, DIR/<task>/{train,test}.parquet")
    given.add_argument("--judge", type=Path, help="earlier --json to evaluate again without running anything")
    parser.add_argument("--tasks", help="comma-separated tasks of the config; default: all that DIR has")
    parser.add_argument(
        "--texts", type=int, default=100, help="maximum number of texts per task that the teacher votes on"
    )
    parser.add_argument("--earlier", type=Path, help="earlier --json whose tasks are added to this run")
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
