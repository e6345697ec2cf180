"""Points of a search: a value for each field of the space, and the config that makes of the base config.

Points of a grid are in the order of the space, the last field fastest; random points are keyed draws, so that 50
trials begin with the 20 of a shorter search. What TPE suggests comes from Optuna, through ``distributions`` and
``decode``.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from potstill import draws
from potstill.config import Config
from potstill.config.files import explain
from potstill.config.search import Range, SearchConfig, Value, rung_shares
from potstill.config.sections import fields
from potstill.config.student import STUDENT_WITHOUT_EFFECT
from potstill.config.teacher import EmbeddedTeacher
from potstill.errors import Problem

Point = Mapping[str, Value]

SECTIONS = ("augment", "relabel", "student")
SEARCHED_OTHERWISE = {
    "student.seed": "training seeds are repeated by search.repeats",
    "student.repeats": "training seeds are repeated by search.repeats",
    **{f"student.{name}": "it changes no score" for name in STUDENT_WITHOUT_EFFECT},
}
MOST_COMBINATIONS = 512  # of values that are tried out when a config is read
MOST_REPEATS = 100  # draws in a row that gave nothing new, and 20 for each point: then the space counts as used up


def search_of(config: Config) -> SearchConfig:
    """The ``search`` section. ``ValueError`` without one: callers have checked."""
    if config.search is None:
        raise ValueError("the config has no search section")
    return config.search


def apply(config: Config, point: Point) -> Config:
    """The config of a trial: ``config`` with the point's values, without search and comparisons.

    Raises ``pydantic.ValidationError`` where the values don't fit each other.
    """
    content = config.model_dump(mode="json", exclude={"search"})
    content["evaluate"]["compare"] = []
    for name, value in point.items():
        *parents, last = name.split(".")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = list(value) if isinstance(value, tuple) else value
    return Config.model_validate(content)


def rungs(config: Config) -> list[Config]:
    """The configs of a trial's rungs, from a trial's config (``apply``) and the search's shares; the last one is whole.

    A rung that would be the same as the one before it is left out: with 3 texts a class there is little to halve.
    """

    def at(texts: float, epochs: float) -> Config:
        augment = {"per_class": max(1, math.ceil(config.augment.per_class * texts - 1e-9))}
        student = {
            "epochs": max(1, math.ceil(config.student.epochs * epochs - 1e-9)),
            "min_steps": max(1, math.ceil(config.student.min_steps * epochs - 1e-9)),
        }
        return config.model_copy(
            update={
                "augment": config.augment.model_copy(update=augment),
                "student": config.student.model_copy(update=student),
                "search": None,
            }
        )

    found: list[Config] = []
    for shares in rung_shares(search_of(config)):
        rung = at(*shares)
        if not found or rung != found[-1]:
            found.append(rung)
    return found


def trial_rungs(config: Config, point: Point) -> list[Config]:
    """The configs of all rungs of the trial at ``point``."""
    return rungs(apply(config, point).model_copy(update={"search": config.search}))


def problems(config: Config) -> list[Problem]:
    """Everything about the search space that does not fit the config; empty without a search section."""
    if config.search is None:
        return []
    search = config.search
    known = {name for name, _ in fields(Config, "")}
    found = []
    usable: dict[str, list[Value]] = {}
    for name, one in search.space.items():
        where = f"search.space.{name}"
        if name not in known:
            close = [other for other in sorted(known) if other.split(".")[-1] == name.split(".")[-1]]
            hint = f"; did you mean {close[0]}?" if close else ""
            found.append(Problem(where, f"the config has no field {name}{hint}"))
        elif name.split(".")[0] not in SECTIONS:
            found.append(Problem(where, f"only fields of {', '.join(SECTIONS)} can be searched"))
        elif name in SEARCHED_OTHERWISE:
            found.append(Problem(where, f"can't be searched: {SEARCHED_OTHERWISE[name]}"))
        else:
            bad = []
            for value in _tried(one):
                complaint = _complaint(config, {name: value})
                if complaint:
                    bad.append(Problem(f"{where} = {_shown(value)}", complaint))
            found += bad
            if not bad:
                usable[name] = _tried(one)
    if not found:
        found += _combinations(config, usable)
    if isinstance(config.teacher, EmbeddedTeacher) and "cost_usd" in search.objective:
        found.append(Problem("search.objective", "cost_usd of an embedded teacher is always 0; use tokens"))
    return found


def _tried(one: Range) -> list[Value]:
    """All values of a short range, the ends of a long one."""
    listed = one.values()
    if listed is None:
        low, high = one.ends
        # In between too: of a whole number, a continuous range has only its ends.
        return [int(low), int(high)] if one.randint is not None else [low, one.at(0.37), high]
    return list(listed) if len(listed) <= MOST_COMBINATIONS else [listed[0], listed[-1]]


def _combinations(config: Config, usable: Mapping[str, Sequence[Value]]) -> list[Problem]:
    """Values that are right alone and wrong together."""
    together: Iterator[tuple[Value, ...]] = itertools.product(*usable.values())
    if math.prod(map(len, usable.values())) > MOST_COMBINATIONS:
        together = itertools.product(*((values[0], values[-1]) for values in usable.values()))
    found: dict[str, Problem] = {}
    for values in itertools.islice(together, MOST_COMBINATIONS):
        point = dict(zip(usable, values, strict=True))
        complaint = _complaint(config, point)
        if complaint:
            shown = ", ".join(f"{name} = {_shown(value)}" for name, value in point.items())
            found.setdefault(complaint, Problem("search.space", f"{shown} don't go together: {complaint}"))
    return list(found.values())


def _complaint(config: Config, point: Point) -> str:
    try:
        apply(config, point)
    except ValidationError as error:
        return "; ".join(problem.message for problem in explain(error, ""))
    return ""


def size(search: SearchConfig) -> int | None:
    """How many points the space has; ``None`` where they can't be counted."""
    counts = [one.values() for one in search.space.values()]
    return math.prod(len(values) for values in counts if values is not None) if None not in counts else None


def grid(search: SearchConfig) -> Iterator[dict[str, Value]]:
    """All points of a finite space, the last field fastest."""
    listed = [one.values() or () for one in search.space.values()]
    for values in itertools.product(*listed):
        yield dict(zip(search.space, values, strict=True))


def random_points(search: SearchConfig) -> Iterator[dict[str, Value]]:
    """Different points without end, or until a finite space is used up. The n-th is the same however many are asked for."""
    seen: set[str] = set()
    repeats, points = 0, size(search)
    for number in itertools.count():
        point = {name: one.at(draws.uniform(search.seed, "trial", number, name)) for name, one in search.space.items()}
        if (key := digest(point)) in seen:
            repeats += 1
            if repeats > MOST_REPEATS + 20 * (points or 0) or len(seen) == points:
                return
            continue
        seen.add(key)
        repeats = 0
        yield point


def fixed_points(search: SearchConfig) -> list[dict[str, Value]] | None:
    """The points of all trials, where they are known beforehand: at most ``search.trials``; ``None`` for TPE."""
    if search.searcher == "tpe":
        return None
    points = grid(search) if search.searcher == "grid" else random_points(search)
    return list(itertools.islice(points, search.trials))


def digest(point: Point) -> str:
    """What names a point."""
    return draws.digest(jsonable(point), size=6)


def jsonable(point: Point) -> dict[str, Any]:
    """A point as plain JSON data; ``from_json`` reads it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in point.items()}


def from_json(data: Mapping[str, Any]) -> dict[str, Value]:
    """The point that ``jsonable`` wrote."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


def encode(search: SearchConfig, point: Point) -> dict[str, Any]:
    """A point as Optuna takes it: choices that are no plain value by their JSON."""
    return {name: _category(value) if search.space[name].choice is not None else value for name, value in point.items()}


def decode(search: SearchConfig, suggested: Mapping[str, Any]) -> dict[str, Value]:
    """The point that Optuna suggested."""
    point = {}
    for name, one in search.space.items():
        value = suggested[name]
        if one.choice is not None:
            value = next(choice for choice in one.choice if _category(choice) == value)
        elif one.step is not None and one.uniform is not None:
            value = round(value, 10)
        point[name] = value
    return point


def categories(one: Range) -> list[Any]:
    """The values of a choice as Optuna takes them."""
    return [_category(value) for value in one.choice or ()]


def _category(value: Value) -> Any:
    return json.dumps(value) if isinstance(value, tuple) else value


def _shown(value: Value) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)


def in_words(point: Point) -> str:
    """A point for a person: field names without their section where that is clear."""

    def put(value: Value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else _shown(value) if isinstance(value, tuple) else str(value)

    return ", ".join(f"{name.split('.', 1)[1]} {put(value)}" for name, value in point.items())
