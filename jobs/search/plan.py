"""The requests of a search: each trial alone, and all trials with shared requests counted once.

Trials share a request if their prompts are equal: a smaller number of texts is a prefix of a larger one, and another
Beta distribution draws from the same grid of alphas. Another number of shots makes other prompts and shares nothing.
TPE's points are not known in advance, so its plan consists of bounds.
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
from jobs.search.validation import held_back_config
from jobs.stages import generate
from potstill import strategies
from potstill.config import Config
from potstill.errors import Problem
from potstill.prompts.render import texts_per_reply
from potstill.search.points import Point, Value, apply, fixed_points, rungs, search_of, size
from potstill.search.validation import from_real

MOST_POINTS = 256  # planned one by one if TPE chooses among them


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """``naive``: all trials without sharing; ``shared``: what is asked, at most; ``least``: at least (one trial, if all
    others find its answers); ``finals``: the best trials with fresh draws, at most; ``cheapest``: one trial;
    ``held_back``: texts generated for validation, if the task has no real ones to spare.

    ``exact``: the points are known, so ``shared`` is what is asked unless trials stop early.
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
    """Plan the search of a job's config. Asks nothing; relabelling is an estimate, since its texts do not exist yet."""
    search = search_of(job.config)
    points = fixed_points(search)
    exact = points is not None
    trials = len(points) if points is not None else min(search.trials, size(search) or search.trials)
    if points is None:
        points = _representatives(job.config)
    configs = [apply(job.config, point) for point in points]
    terms = plan.teacher_terms(job.config.teacher)
    singles = [_alone(job, config, terms) for config in configs]
    dearest, cheapest = max(singles, key=_weight), min(singles, key=_weight)
    union = _union(job, configs, terms)
    if exact:
        naive, shared = _sum("trials unshared", singles), union
    else:
        # All trials may be the most expensive one, but together they ask no more than all points of the space.
        naive = _scaled("trials unshared, at most", dearest, trials)
        shared = union if _covers(job.config, points) and _weight(union) < _weight(naive) else naive
        shared = replace(shared, stage="shared, at most")
    rung = rungs(configs[singles.index(cheapest)].model_copy(update={"search": search}))[0]
    least = replace(_alone(job, rung, terms), stage="shared, at least")
    finals = _scaled("finals, at most", dearest, min(search.top_k, trials))
    return SearchPlan(trials, naive, shared, least, finals, cheapest, _held_back(job, terms), exact)


def budget_problems(config: Config, planned: SearchPlan) -> list[Problem]:
    """The problem of a budget too small for one trial, its validation texts and the finals."""
    budget = search_of(config).budget_usd
    one, finals = planned.cheapest.cost_usd, planned.finals.cost_usd
    generated = (planned.held_back.cost_usd if planned.held_back is not None else None) or 0.0
    if budget is None or one is None or finals is None or budget >= one + generated + finals:
        return []
    message = f"one trial may cost about ${one:.2g}"
    if budget < one:
        message += "; raise it, or search with fewer texts (augment.per_class)"
    else:
        held, lower = (f", texts held back ${generated:.2g}", ", search.held_back") if generated else ("", "")
        message += f"{held} and the finals ${finals:.2g}; raise it, or lower search.top_k{lower}"
    return [Problem(f"search.budget_usd = {budget:g}", message)]


def show(config: Config) -> None:
    """Print the plan of a search."""
    job = prepare(config, Terminal())
    print_plan(job, plan_search(job))


def print_plan(job: Job, planned: SearchPlan) -> None:
    """Print the plan as a table, and what sharing saves."""
    search = search_of(job.config)
    say = job.terminal.say
    how = {"tpe": "Optuna's TPE", "random": "random points", "grid": "a grid"}[search.searcher]
    stop = ", bad trials stopped early" if search.halving else ""
    say(f"[bold]{job.task.name}[/]: {planned.trials} trials over {len(search.space)} fields, {how}{stop}")
    columns = ["", "requests", "in the ledger", "prompt tokens", "completion tokens", "cost (about)"]
    bounds = [] if planned.exact and not search.halving else [planned.least]
    rows = [plan.row(one) for one in [planned.naive, *bounds, *planned.most]]
    job.terminal.table("", columns, [one[: len(columns)] for one in rows])
    if not planned.exact:
        say("TPE's points are not known in advance, so these are bounds")
    elif planned.naive.requests:
        share = planned.shared.requests / planned.naive.requests
        early = "; trials that stop early ask less" if search.halving else ""
        say(f"with sharing, the trials ask {share:.0%} of their requests{early}")


def _representatives(config: Config) -> list[dict[str, Value]]:
    """Points that represent the space: all of a small one, else its corners. The student's fields ask nothing."""
    search = search_of(config)
    listed: list[Sequence[Value]] = []
    for name, one in search.space.items():
        values = one.values() or one.ends
        listed.append(values[:1] if name.startswith("student.") else values)
    if math.prod(map(len, listed)) > MOST_POINTS:
        listed = [(values[0], values[-1]) if len(values) > 1 else values for values in listed]
    whole = itertools.product(*listed)
    return [dict(zip(search.space, values, strict=True)) for values in itertools.islice(whole, MOST_POINTS)]


def _covers(config: Config, points: Sequence[Point]) -> bool:
    """Whether ``points`` ask everything that any point of the space asks."""
    space = search_of(config).space
    counts = [one.values() for name, one in space.items() if not name.startswith("student.")]
    return all(counts) and math.prod(len(values or ()) for values in counts) == len(points)


def _alone(job: Job, config: Config, terms: Terms) -> StagePlan:
    """One trial without sharing."""
    one = replace(job, config=config)
    counts = generate.next_counts(one, [], {})
    # All prompts of a plan have about the same length, so a few of each class represent all.
    few = {label: (start, min(stop, start + 2)) for label, (start, stop) in counts.items()}
    sample = [plan.most_tokens(request, terms) for request in generate.plan_requests(one, few)]
    times = sum(stop - start for start, stop in counts.values()) / max(1, len(sample))
    generated = _scaled("generate", plan.plan_tokens("generate", sample, terms), times)
    return _sum("trial", [generated, _relabelling(one, terms, _texts(one))])


def _texts(job: Job) -> int:
    return strategies.texts_wanted(job.config.augment) * len(job.labels)


def _held_back(job: Job, terms: Terms) -> StagePlan | None:
    """Texts generated for validation; None if the task has real ones to spare."""
    if from_real(job.data, search_of(job.config).max_validation, job.config.task_seed) is not None:
        return None
    return replace(_alone(job, held_back_config(job.config), terms), stage="held back, at most")


def _relabelling(job: Job, terms: Terms, texts: int) -> StagePlan:
    if not job.config.relabel.enabled:
        return plan.plan_tokens("relabel", [], terms)
    return plan.plan_stage("relabel", job.questions.sample(), terms, times=job.questions.times(texts))


def _union(job: Job, configs: Sequence[Config], terms: Terms) -> StagePlan:
    """All trials, each request once. Of trials that differ only in their number of texts, the largest is planned."""
    largest: dict[str, Config] = {}
    for config in configs:
        known = largest.setdefault(_prompts(config), config)
        if strategies.texts_wanted(config.augment) > strategies.texts_wanted(known.augment):
            largest[_prompts(config)] = config
    asked: dict[str, tuple[int, int]] = {}
    ids_of: dict[str, set[str]] = {}
    for key, config in largest.items():
        one = replace(job, config=config)
        requests = list(generate.plan_requests(one, generate.next_counts(one, [], {})))
        ids_of[key] = {request.request_id for request in requests}
        asked |= {request.request_id: plan.most_tokens(request, terms) for request in requests}
    in_ledger = plan.count_known(job.config, list(asked))
    stages = [plan.plan_tokens("generate", list(asked.values()), terms, known=in_ledger)]
    groups: dict[str, list[Config]] = defaultdict(list)
    for config in configs:
        groups[json.dumps(config.relabel.model_dump(mode="json"), sort_keys=True)].append(config)
    for group in groups.values():
        # Trials that share a request also share its texts, which are labelled once.
        shared = set().union(*(ids_of[_prompts(config)] for config in group))
        one = replace(job, config=group[0])
        expected = texts_per_reply(one.teacher.renderer, one.config.augment.texts_per_reply)
        alone = sum(_texts(replace(job, config=config)) for config in group)
        stages.append(_relabelling(one, terms, min(alone, round(len(shared) * expected))))
    return replace(_sum("shared", stages), known=in_ledger)


def _prompts(config: Config) -> str:
    """Everything that decides a plan's prompts except their number."""
    return json.dumps(
        config.augment.model_dump(mode="json", exclude={"per_class", "over_generate", "max_rounds"}), sort_keys=True
    )


def _weight(stage: StagePlan) -> float:
    """What orders trials by cost: dollars if known, else tokens."""
    return stage.cost_usd or float(stage.prompt_tokens + stage.completion_tokens)


def _scaled(name: str, stage: StagePlan, times: float) -> StagePlan:
    return replace(
        stage,
        stage=name,
        requests=round(stage.requests * times),
        prompt_tokens=round(stage.prompt_tokens * times),
        completion_tokens=round(stage.completion_tokens * times),
        cost_usd=None if stage.cost_usd is None else stage.cost_usd * times,
        seconds=None if stage.seconds is None else stage.seconds * times,
    )


def _sum(name: str, stages: Sequence[StagePlan]) -> StagePlan:
    return replace(plan.total(stages), stage=name, known=None)
