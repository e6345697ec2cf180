"""What a search would ask: each trial by itself, and with everything that trials share asked once.

Trials share a request wherever their prompts are the same: texts a class are a prefix of more texts a class, another
Beta distribution draws from the same grid of alphas. Other shots are other prompts, and so nothing is shared there.
What TPE will suggest nobody knows, so of it there are bounds.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs import plan
from jobs.plan import StagePlan, Terms
from jobs.run.job import Job, prepare
from jobs.runtime.terminal import Terminal
from jobs.search import validation as validating
from jobs.stages import generate
from potstill import strategies
from potstill.config import Config
from potstill.errors import Problem
from potstill.prompts.render import texts_per_reply
from potstill.search import points as search_points
from potstill.search.points import Point
from potstill.search.validation import from_real

MOST_POINTS = 256  # that are planned one by one where TPE chooses among them


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """``naive``: all trials, each by itself; ``shared``: what is really asked, at most; ``least``: at least (one trial,
    where all others find its answers); ``finals``: the best trials drawn afresh, at most; ``cheapest``: one trial;
    ``held_back``: texts that are written for validation alone, where the task has no real ones to spare.

    ``exact``: whether the trials' points are known, so that ``shared`` is what will be asked if no trial is stopped.
    """

    trials: int
    naive: StagePlan
    shared: StagePlan
    least: StagePlan
    finals: StagePlan
    cheapest: StagePlan
    held_back: StagePlan | None
    exact: bool

    @property
    def most(self) -> list[StagePlan]:
        """What the search asks at most."""
        return [one for one in (self.shared, self.held_back, self.finals) if one is not None]


def plan_search(job: Job) -> SearchPlan:
    """Plan the search of a job's config. Nothing is asked; relabelling is estimated, since its texts are not written."""
    search = search_points.search_of(job.config)
    points = search_points.fixed_points(search)
    exact = points is not None
    trials = len(points) if points is not None else min(search.trials, search_points.size(search) or search.trials)
    if points is None:
        points = _representatives(job.config)
    configs = [search_points.apply(job.config, point) for point in points]
    terms = plan.teacher_terms(job.config.teacher)
    singles = [_alone(job, config, terms) for config in configs]
    dearest, cheapest = max(singles, key=_weight), min(singles, key=_weight)
    union = _union(job, configs, singles, terms)
    if exact:
        naive, shared = _sum("trials unshared", singles), union
    else:
        # Trials may all be the dearest, but no more is asked than all points of the space together ask.
        naive = _times("trials unshared, at most", dearest, trials)
        shared = union if _covers(job.config, points) and _weight(union) < _weight(naive) else naive
        shared = replace(shared, stage="shared, at most")
    rung = search_points.rungs(configs[singles.index(cheapest)].model_copy(update={"search": search}))[0]
    least = replace(_alone(job, rung, terms), stage="shared, at least")
    finals = _times("finals, at most", dearest, min(search.top_k, trials))
    return SearchPlan(trials, naive, shared, least, finals, cheapest, _held_back(job, terms), exact)


def budget_problems(config: Config, planned: SearchPlan) -> list[Problem]:
    """A budget that not even one trial, the texts to score it on and the finals fit into."""
    search = search_points.search_of(config)
    one, finals = planned.cheapest.cost_usd, planned.finals.cost_usd
    written = (planned.held_back.cost_usd if planned.held_back is not None else None) or 0.0
    if search.budget_usd is None or one is None or finals is None or search.budget_usd >= one + written + finals:
        return []
    if search.budget_usd < one:
        message = f"one trial may cost about ${one:.2g}; raise it, or search with fewer texts (augment.per_class)"
    else:
        held, lower = (f", texts held back ${written:.2g}", ", search.held_back") if written else ("", "")
        message = f"one trial may cost about ${one:.2g}{held} and the finals ${finals:.2g}; raise it, or lower search.top_k{lower}"
    return [Problem(f"search.budget_usd = {search.budget_usd:g}", message)]


def show(config: Config) -> None:
    """Print the plan of a search."""
    job = prepare(config, Terminal())
    print_plan(job, plan_search(job))


def print_plan(job: Job, planned: SearchPlan) -> None:
    """As a small table, with what sharing saves in a line."""
    search = search_points.search_of(job.config)
    say = job.terminal.say
    how = {"tpe": "Optuna's TPE", "random": "random points", "grid": "a grid"}[search.searcher]
    stop = ", bad trials stopped early" if search.halving else ""
    say(f"[bold]{job.task.name}[/]: {planned.trials} trials over {len(search.space)} fields, {how}{stop}")
    columns = ["", "requests", "in the ledger", "prompt tokens", "completion tokens", "cost (about)"]
    bounds = [] if planned.exact and not search.halving else [planned.least]
    rows = [plan.row(one) for one in [planned.naive, *bounds, *planned.most]]
    job.terminal.table("", columns, [one[: len(columns)] for one in rows])
    if planned.exact and planned.naive.requests:
        share = planned.shared.requests / planned.naive.requests
        words = f"shared, the trials ask {share:.0%} of what they would by themselves"
        say(words + ("; trials that are stopped early ask less" if search.halving else ""))
    if not planned.exact:
        say("which points TPE will suggest is not known beforehand, so these are bounds")


def _representatives(config: Config) -> list[dict[str, search_points.Value]]:
    """Points that stand for the space: all of a small one, the corners of others. The student's fields ask nothing."""
    search = search_points.search_of(config)
    listed: list[Sequence[search_points.Value]] = []
    for name, one in search.space.items():
        values = one.values() or one.ends
        listed.append(values[:1] if name.startswith("student.") else values)
    if math.prod(map(len, listed)) > MOST_POINTS:
        listed = [(values[0], values[-1]) if len(values) > 1 else values for values in listed]
    whole = itertools.product(*listed)
    return [dict(zip(search.space, values, strict=True)) for values in itertools.islice(whole, MOST_POINTS)]


def _covers(config: Config, points: Sequence[Point]) -> bool:
    """Whether every point of the space asks what one of ``points`` asks."""
    search = search_points.search_of(config)
    counts = [one.values() for name, one in search.space.items() if not name.startswith("student.")]
    return all(counts) and math.prod(len(values or ()) for values in counts) == len(points)


def _at(job: Job, config: Config) -> Job:
    return replace(job, config=config)


def _alone(job: Job, config: Config, terms: Terms) -> StagePlan:
    """One trial by itself."""
    one = _at(job, config)
    counts = generate.next_counts(one, [], {})
    # All prompts of a plan are about equally long, so a few of each class stand for all.
    few = {label: (start, min(stop, start + 2)) for label, (start, stop) in counts.items()}
    sample = [plan.most_tokens(request, terms) for request in generate.plan_requests(one, few)]
    times = sum(stop - start for start, stop in counts.values()) / max(1, len(sample))
    written = _scaled(plan.plan_tokens("trial", sample, terms), times)
    return _sum("trial", [written, _relabelling(one, terms, _texts(one))])


def _texts(job: Job) -> int:
    return strategies.texts_wanted(job.config.augment) * len(job.labels)


def _held_back(job: Job, terms: Terms) -> StagePlan | None:
    """Texts that are written for validation alone; ``None`` where the task has real ones to spare."""
    most = search_points.search_of(job.config).max_validation
    if from_real(job.data, most, job.config.task_seed) is not None:
        return None
    return replace(_alone(job, validating.held_back_config(job.config), terms), stage="held back, at most")


def _relabelling(job: Job, terms: Terms, texts: int) -> StagePlan:
    config = job.config
    if not config.relabel.enabled:
        return plan.plan_tokens("relabel", [], terms)
    return plan.plan_stage("relabel", job.questions.sample(), terms, times=texts + len(job.data.seeds))


def _union(job: Job, configs: Sequence[Config], singles: Sequence[StagePlan], terms: Terms) -> StagePlan:
    """All trials, every request once. Of trials that differ in their number of texts the largest asks for all."""
    largest: dict[str, Config] = {}
    for config in configs:
        key = _prompts(config)
        if key not in largest or strategies.texts_wanted(config.augment) > strategies.texts_wanted(
            largest[key].augment
        ):
            largest[key] = config
    asked: dict[str, tuple[int, int]] = {}
    ids_of: dict[str, set[str]] = {}
    for key, config in largest.items():
        one = _at(job, config)
        requests = list(generate.plan_requests(one, generate.next_counts(one, [], {})))
        ids_of[key] = {request.request_id for request in requests}
        asked |= {request.request_id: plan.most_tokens(request, terms) for request in requests}
    known = plan.count_known(job.config, list(asked))
    stages = [plan.plan_tokens("generate", list(asked.values()), terms, known=known)]
    groups: dict[str, list[Config]] = defaultdict(list)
    for config in configs:
        groups[json.dumps(config.relabel.model_dump(mode="json"), sort_keys=True)].append(config)
    for group in groups.values():
        # A text of a request that several trials share is labelled once.
        written = set().union(*(ids_of[_prompts(config)] for config in group))
        one = _at(job, group[0])
        expected = texts_per_reply(one.teacher.renderer, one.config.augment.texts_per_reply)
        alone = sum(_texts(_at(job, config)) for config in group)
        stages.append(_relabelling(one, terms, min(alone, round(len(written) * expected))))
    together = _sum("shared", stages)
    return replace(together, known=known)


def _prompts(config: Config) -> str:
    """What decides a plan's prompts, but for how many there are."""
    return json.dumps(
        config.augment.model_dump(mode="json", exclude={"per_class", "over_generate", "max_rounds"}), sort_keys=True
    )


def _weight(stage: StagePlan) -> float:
    """What makes one trial dearer than another: dollars where they are known, else tokens."""
    tokens = stage.prompt_tokens + stage.completion_tokens
    return stage.cost_usd if stage.cost_usd else float(tokens)


def _scaled(stage: StagePlan, times: float) -> StagePlan:
    return replace(
        stage,
        requests=round(stage.requests * times),
        prompt_tokens=round(stage.prompt_tokens * times),
        completion_tokens=round(stage.completion_tokens * times),
        cost_usd=None if stage.cost_usd is None else stage.cost_usd * times,
        seconds=None if stage.seconds is None else stage.seconds * times,
    )


def _times(name: str, stage: StagePlan, times: int) -> StagePlan:
    return replace(_scaled(stage, times), stage=name)


def _sum(name: str, stages: Sequence[StagePlan]) -> StagePlan:
    return replace(plan.total(stages), stage=name, known=None)
