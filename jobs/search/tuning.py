"""Run the trials of a search with Ray Tune: Optuna's TPE or fixed points, ASHA over rungs, results in our own table.

Tune decides which trial runs next and which stops; the search's table holds the results. A resumed search replays the
table to a new Tune: known trials report their stored results, at about a second each. So a search can resume and also
grow, which Tune's own ``restore`` can't do.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.search.table import Status, Trial, TrialTable
from jobs.search.trial import RungResult, Scene, owners, run_rung
from potstill.config import Config
from potstill.config.search import Range, SearchConfig
from potstill.errors import PotstillError
from potstill.search.ending import Ending
from potstill.search.placement import TRIAL_CPUS
from potstill.search.points import (
    Point,
    categories,
    decode,
    digest,
    encode,
    fixed_points,
    random_points,
    search_of,
    size,
    trial_rungs,
)
from potstill.search.ranking import mode

LOST_NODES = 2  # times a trial may lose its node before it counts as failed
MOST_TRIES = 10  # consecutive repeated suggestions before a random point is drawn instead
_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the job has its own handler (jobs/runtime/interrupt.py)
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True, slots=True)
class Listener:
    """Callbacks of a search, called in the driver process with the trial's present state."""

    began: Callable[[Trial], None]
    rung: Callable[[Trial], None]
    ended: Callable[[Trial], None]


def run_trials(scene: Scene, table: TrialTable, ending: Ending, listener: Listener) -> None:
    """Run the search's trials until all are done or ``ending`` has a reason, and keep the table up to date.

    Results in the table are not computed again. Needs a connected ``ray``; raises what Tune raises.
    """
    search = search_of(scene.config)
    for attempt in range(1 + LOST_NODES):
        # Tune loses a trial whose node vanished before it began, so another Tune runs what is left.
        points = fixed_points(search)
        if points is not None and not search.halving:
            done = {trial.key for trial in table.trials if trial.status == "finished"}
            done |= {trial.key for trial in table.of("failed")} if attempt else set()
            points = [point for point in points if digest(point) not in done]
        if ending.reason is not None or not _left(search, points, table, again=attempt == 0):
            return
        _run_tune(scene, points, table, ending, listener)


def _run_tune(
    scene: Scene, points: Sequence[Point] | None, table: TrialTable, ending: Ending, listener: Listener
) -> None:
    """Run Tune over ``points``, or over TPE's suggestions."""
    from ray import tune

    search = search_of(scene.config)
    os.environ.update(_ENVIRONMENT)
    scratch = tempfile.mkdtemp(prefix="potstill-tune-")
    watch = _make_watch(scene.config, points, table, ending, _releasing(scene, listener))
    old = {trial.key: (trial.status, len(trial.rungs)) for trial in table.trials}
    trainable = tune.with_resources(
        tune.with_parameters(trial, scene=scene, points=points, known=old), {"CPU": TRIAL_CPUS}
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tune.Tuner(
                trainable,
                param_space={"number": tune.grid_search(list(range(len(points))))} if points is not None else {},
                tune_config=tune.TuneConfig(
                    num_samples=1 if points is not None else max(search.trials, len(table)),
                    search_alg=None if points is not None else _optuna(scene.config, table),
                    scheduler=_scheduler(search),
                    max_concurrent_trials=scene.placement.concurrency,
                    reuse_actors=True,
                    trial_name_creator=lambda one: one.trial_id,
                    trial_dirname_creator=lambda one: one.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="search",
                    storage_path=scratch,
                    verbose=0,
                    callbacks=[watch],
                    stop=watch.stopper,
                    failure_config=tune.FailureConfig(max_failures=LOST_NODES),
                ),
            ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _releasing(scene: Scene, listener: Listener) -> Listener:
    """A listener that also releases the claims of an ended trial, whose process may have died."""

    def ended(trial: Trial) -> None:
        for owner in owners(trial.key):
            scene.search_workers.release.remote(owner)
        listener.ended(trial)

    return Listener(listener.began, listener.rung, ended)


def trial(
    config: Mapping[str, Any],
    scene: Scene,
    points: Sequence[Point] | None,
    known: Mapping[str, tuple[Status, int]],
) -> None:
    """The function that Tune runs for each trial: its rungs in order. Tune may stop it between two of them."""
    from ray import tune

    search = search_of(scene.config)
    point = points[config["number"]] if points is not None else decode(search, config)
    name = digest(point)
    status, told = known.get(name, ("running", 0))
    for number, rung in enumerate(trial_rungs(scene.config, point)):
        report: dict[str, Any] = {"rung": number, "resource": search.reduction**number, "point": name}
        try:
            result = run_rung(scene, rung, owner=name)
        except PotstillError as error:
            # Not raised: unlike for a lost node, a retry would fail the same way.
            nothing: dict[str, Any] = dict.fromkeys(search.objective, math.nan)
            tune.report({**report, **nothing, "error": str(error)})
            return
        scores: dict[str, Any] = {metric: result.scores[metric] for metric in search.objective}
        tune.report({**report, **scores, "result": asdict(result)})
        if status == "stopped" and number + 1 == told:
            return  # an earlier run stopped it here, knowing more trials


def _left(search: SearchConfig, points: Sequence[Point] | None, table: TrialTable, again: bool) -> bool:
    """Whether trials are left to run. ``again``: including those that failed in an earlier run of the search."""
    if table.of("running") or (again and table.of("failed")):
        return True
    if points is None:
        return len(table) < min(search.trials, size(search) or search.trials)
    known = {trial.key for trial in table.trials}
    return any(digest(point) not in known for point in points)


def _scheduler(search: SearchConfig) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if not search.halving:
        return FIFOScheduler()
    # Rung n has the resource reduction ** n. The last rung is not a milestone, since the trial ends there.
    return ASHAScheduler(
        time_attr="resource",
        metric=search.objective[0],
        mode=mode(search.objective[0]),
        max_t=search.reduction**search.rung_count,
        grace_period=1,
        reduction_factor=search.reduction,
    )


def _optuna(config: Config, table: TrialTable) -> Any:
    """Optuna's TPE without repeated suggestions. It first replays the table's trials in order."""
    import optuna
    from ray.tune.search import Searcher
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = search_of(config)

    class DistinctSearch(OptunaSearch):
        """Suggests each point once: a repeated trial would only load the stored result."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._seen: set[str] = set()

        def __reduce__(self) -> Any:
            return Searcher, ()

        def suggest(self, trial_id: str) -> Any:
            for last_try in (False,) * MOST_TRIES + (True,):
                if last_try:
                    # TPE keeps repeating itself, so take any remaining point.
                    left = (p for p in random_points(search) if digest(p) not in self._seen)
                    point = next(left, None)
                    if point is None:
                        break
                    self._ot_study.enqueue_trial(encode(search, point))
                suggested = super().suggest(trial_id)
                name = digest(decode(search, suggested))
                if name not in self._seen:
                    self._seen.add(name)
                    return suggested
                again = self._ot_trials.pop(trial_id)
                self._ot_study.tell(again, state=optuna.trial.TrialState.FAIL)
            return Searcher.FINISHED

    space = {name: distribution(one) for name, one in search.space.items()}
    several = len(search.objective) > 1
    return DistinctSearch(
        space,
        metric=list(search.objective) if several else search.objective[0],
        mode=[mode(m) for m in search.objective] if several else mode(search.objective[0]),
        points_to_evaluate=[encode(search, trial.point) for trial in table.trials],
        sampler=optuna.samplers.TPESampler(
            seed=search.seed, n_startup_trials=max(4, min(10, search.trials // 3)), constant_liar=not several
        ),
    )


def distribution(one: Range) -> Any:
    """A range as an Optuna distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.choice is not None:
        return CategoricalDistribution(categories(one))
    low, high = one.ends
    if one.randint is not None:
        step = int(one.step or 1)
        return IntDistribution(int(low), int(low) + (int(high) - int(low)) // step * step, step=step)
    if one.step is not None:
        return FloatDistribution(low, (one.values() or (high,))[-1], step=one.step)
    return FloatDistribution(low, high, log=one.loguniform is not None)


def _make_watch(
    config: Config, points: Sequence[Point] | None, table: TrialTable, ending: Ending, listener: Listener
) -> Any:
    """A Tune callback that updates the table, with a ``stopper`` that ends Tune once ``ending`` has a reason."""
    from ray import tune

    search = search_of(config)

    class Stopper(tune.Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def __reduce__(self) -> Any:
            return tune.Stopper, ()

        def stop_all(self) -> bool:
            ending.passed(time.monotonic())
            return ending.reason is not None

    class Watch(tune.Callback):
        def __init__(self) -> None:
            self.stopper = Stopper()
            self._of: dict[str, Trial] = {}

        def __reduce__(self) -> Any:
            # Tune pickles its arguments into a file that is never read; terminal and tracker can't be pickled.
            return tune.Callback, ()

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._begin(trial)

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            mine = self._begin(trial)
            if "error" in result:
                table.end(mine, "failed", result["error"])
                ending.failed(result["error"])
                return
            if table.add(mine, result["rung"], RungResult.from_json(result["result"])):
                listener.rung(mine)
            ending.succeeded(table.spent_usd)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            mine = self._of.get(trial.trial_id)
            if mine is None:
                return
            if mine.status != "failed":
                if len(mine.rungs) == len(trial_rungs(config, mine.point)):
                    table.end(mine, "finished")
                elif ending.reason is None and search.halving:
                    table.end(mine, "stopped")
            listener.ended(mine)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            mine = self._of.get(trial.trial_id)
            if mine is not None:
                error = trial.get_error()
                details = (error.args or ("the trial's process was lost",)) if error else ("lost",)
                reason = str(details[-1]).strip().splitlines()[-1]
                table.end(mine, "failed", reason)
                ending.failed(reason)
                listener.ended(mine)

        def _begin(self, trial: Any) -> Trial:
            if trial.trial_id not in self._of:
                config = trial.config
                point = points[config["number"]] if points is not None else decode(search, config)
                mine = self._of[trial.trial_id] = table.begin(point)
                if mine.status == "failed":  # in an earlier run
                    table.end(mine, "running")
                listener.began(mine)
            return self._of[trial.trial_id]

    return Watch()
