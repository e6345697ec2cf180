"""Ray Tune over the trials of a search: Optuna's TPE or fixed points, ASHA over rungs, and a table of our own.

Tune decides what is tried next and what stops; it keeps nothing. What came out is in the search's table, and a search
that goes on tells Tune all of it again: trials that are there already report what is stored, which costs about a
second each and no computing. So a search can be resumed, and also grow, which Tune's own ``restore`` can't.
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
from potstill.search import points as search_points
from potstill.search.ending import Ending
from potstill.search.placement import TRIAL_CPUS
from potstill.search.points import Point
from potstill.search.ranking import mode

LOST_NODES = 2  # of a trial, before it counts as failed
MOST_TRIES = 10  # suggestions in a row that were tried before: then another point is drawn
_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the job has a handler of its own (jobs/runtime/interrupt.py)
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears of a search: each is called in the driver's process, with the trial as it is then."""

    began: Callable[[Trial], None]
    rung: Callable[[Trial], None]
    ended: Callable[[Trial], None]


def run_trials(scene: Scene, table: TrialTable, ending: Ending, listener: Listener) -> None:
    """Run the search's trials until all are done or ``ending`` has a reason. The table is brought up to date as they
    go.

    What the table holds is not computed again. Needs a connected ``ray``; raises what Tune raises.
    """
    search = search_points.search_of(scene.config)
    for attempt in range(1 + LOST_NODES):
        # A trial that was to begin on a node that went is lost to Tune, so what is left after it is given to another.
        points = search_points.fixed_points(search)
        if points is not None and not search.halving:
            done = {trial.key for trial in table.trials if trial.status == "finished"}
            done |= {trial.key for trial in table.of("failed")} if attempt else set()
            points = [point for point in points if search_points.digest(point) not in done]
        if ending.reason is not None or not _left(search, points, table, again=attempt == 0):
            return
        _run_tune(scene, points, table, ending, listener)


def _run_tune(
    scene: Scene, points: Sequence[Point] | None, table: TrialTable, ending: Ending, listener: Listener
) -> None:
    """Tune over ``points``, or what TPE suggests."""
    from ray import tune

    search = search_points.search_of(scene.config)
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
    """A listener that also gives up what an ended trial had claimed: its process may have died over it."""

    def ended(trial: Trial) -> None:
        for owner in owners(trial.key):
            scene.workshop.release.remote(owner)
        listener.ended(trial)

    return Listener(listener.began, listener.rung, ended)


def trial(
    config: Mapping[str, Any],
    scene: Scene,
    points: Sequence[Point] | None,
    known: Mapping[str, tuple[Status, int]],
) -> None:
    """What Tune runs for each trial: its rungs, one after another; Tune stops it between two of them."""
    from ray import tune

    search = search_points.search_of(scene.config)
    point = points[config["number"]] if points is not None else search_points.decode(search, config)
    name = search_points.digest(point)
    status, told = known.get(name, ("running", 0))
    for number, rung in enumerate(search_points.trial_rungs(scene.config, point)):
        report: dict[str, Any] = {"rung": number, "resource": search.reduction**number, "point": name}
        try:
            result = run_rung(scene, rung, owner=name)
        except PotstillError as error:
            # Not raised: what a stage says does not become true by trying again, as for a lost node.
            nothing: dict[str, Any] = dict.fromkeys(search.objective, math.nan)
            tune.report({**report, **nothing, "error": str(error)})
            return
        scores: dict[str, Any] = {metric: result.scores[metric] for metric in search.objective}
        tune.report({**report, **scores, "result": asdict(result)})
        if status == "stopped" and number + 1 == told:
            return  # it was stopped here when more was known than is now


def _left(search: SearchConfig, points: Sequence[Point] | None, table: TrialTable, again: bool) -> bool:
    """Whether there is anything to do. ``again``: also what failed, in an earlier run of the search."""
    if table.of("running") or (again and table.of("failed")):
        return True
    if points is None:
        return len(table) < min(search.trials, search_points.size(search) or search.trials)
    known = {trial.key for trial in table.trials}
    return any(search_points.digest(point) not in known for point in points)


def _scheduler(search: SearchConfig) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if not search.halving:
        return FIFOScheduler()
    # Rung n has the resource reduction ** n; the last one is no milestone, since a trial ends there anyhow.
    return ASHAScheduler(
        time_attr="resource",
        metric=search.objective[0],
        mode=mode(search.objective[0]),
        max_t=search.reduction**search.rung_count,
        grace_period=1,
        reduction_factor=search.reduction,
    )


def _optuna(config: Config, table: TrialTable) -> Any:
    """Optuna's TPE, which suggests nothing twice; what was tried before is told again first, in its order."""
    import optuna
    from ray.tune.search import Searcher
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = search_points.search_of(config)

    class DistinctSearch(OptunaSearch):
        """A point that is being tried, or was, would only find its own result again."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._seen: set[str] = set()

        def __reduce__(self) -> Any:
            return Searcher, ()

        def suggest(self, trial_id: str) -> Any:
            for last_try in (False,) * MOST_TRIES + (True,):
                if last_try:
                    # TPE insists on what it knows: any point that is left, then.
                    left = (p for p in search_points.random_points(search) if search_points.digest(p) not in self._seen)
                    point = next(left, None)
                    if point is None:
                        break
                    self._ot_study.enqueue_trial(search_points.encode(search, point))
                suggested = super().suggest(trial_id)
                name = search_points.digest(search_points.decode(search, suggested))
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
        points_to_evaluate=[search_points.encode(search, trial.point) for trial in table.trials],
        sampler=optuna.samplers.TPESampler(
            seed=search.seed, n_startup_trials=max(4, min(10, search.trials // 3)), constant_liar=not several
        ),
    )


def distribution(one: Range) -> Any:
    """A range as Optuna takes it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.choice is not None:
        return CategoricalDistribution(search_points.categories(one))
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
    """A Tune callback that keeps the table, with a ``stopper`` that ends Tune when there is a reason."""
    from ray import tune

    search = search_points.search_of(config)

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
            # Tune writes all that it was given to a file that nobody reads; terminal and tracker can't go there.
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
            self._end(trial)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            mine = self._of.get(trial.trial_id)
            if mine is not None:
                lines = (
                    (trial.get_error().args or ("the trial's process was lost",)) if trial.get_error() else ("lost",)
                )
                reason = str(lines[-1]).strip().splitlines()[-1]
                table.end(mine, "failed", reason)
                ending.failed(reason)
                listener.ended(mine)

        def _begin(self, trial: Any) -> Trial:
            if trial.trial_id not in self._of:
                config = trial.config
                point = points[config["number"]] if points is not None else search_points.decode(search, config)
                mine = self._of[trial.trial_id] = table.begin(point)
                if mine.status == "failed":  # in an earlier run of the search
                    table.end(mine, "running")
                listener.began(mine)
            return self._of[trial.trial_id]

        def _end(self, trial: Any) -> None:
            mine = self._of.get(trial.trial_id)
            if mine is None:
                return
            whole = len(search_points.trial_rungs(config, mine.point))
            if mine.error is None or mine.status != "failed":
                if len(mine.rungs) == whole:
                    table.end(mine, "finished")
                elif ending.reason is None and search.halving:
                    table.end(mine, "stopped")
            listener.ended(mine)

    return Watch()
