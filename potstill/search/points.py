"""Points of a search: a value for each field of the space, and the trial configs that they define.

A grid varies the last field fastest. Random points are keyed draws, so 50 trials begin with the 20 of a shorter search.
TPE's suggestions come from Optuna through ``decode``.
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
from potstill.config.files import explain, set_field
from potstill.config.search import Range, SearchConfig, Value, rung_shares
from potstill.config.sections import fields
from potstill.config.student import STUDENT_WITHOUT_EFFECT
from potstill.config.teacher import EmbeddedTeacher
from potstill.errors import Problem

Point = Mapping[str, Value]

SECTIONS = ("augment", "relabel", "student")
SEARCHED_OTHERWISE = {
    **dict.fromkeys(("student.seed", "student.repeats"), "use search.repeats for more training seeds"),
    **{f"student.{name}": "it does not change scores" for name in STUDENT_WITHOUT_EFFECT},
}
MOST_COMBINATIONS = 512  # of values checked when a config is read
MOST_REPEATS = 100  # plus 20 per point: consecutive draws without a new point after which the space counts as exhausted


def search_of(config: Config) -> SearchConfig:
    """The ``search`` section. Raises ``ValueError`` without one."""
    if config.search is None:
        raise ValueError("the config has no search section")
    return config.search


def apply(config: Config, point: Point) -> Config:
    """The config of a trial: ``config`` with the point's values, without search and comparisons.

    Raises ``pydantic.ValidationError`` if the values contradict each other.
    """
    content = config.model_dump(mode="json", exclude={"search"})
    content["evaluate"] |= {"compare": [], "teacher": 0}
    for name, value in jsonable(point).items():
        set_field(content, name, value)
    return Config.model_validate(content)


def rungs(config: Config) -> list[Config]:
    """The configs of a trial's rungs, from the trial's config (``apply``) and the search's shares; the last is complete.

    A rung equal to the previous one is left out, as happens with few texts per class.
    """
    found: list[Config] = []
    for texts, epochs in rung_shares(search_of(config)):
        augment = {"per_class": _share(config.augment.per_class, texts)}
        student = {
            "epochs": _share(config.student.epochs, epochs),
            "min_steps": _share(config.student.min_steps, epochs),
        }
        sections = {
            "augment": config.augment.model_copy(update=augment),
            "student": config.student.model_copy(update=student),
        }
        rung = config.model_copy(update={**sections, "search": None})
        if rung not in found[-1:]:
            found.append(rung)
    return found


def _share(number: int, share: float) -> int:
    return max(1, math.ceil(number * share - 1e-9))


def trial_rungs(config: Config, point: Point) -> list[Config]:
    """The configs of all rungs of the trial at ``point``."""
    return rungs(apply(config, point).model_copy(update={"search": config.search}))


def problems(config: Config) -> list[Problem]:
    """All problems of the search space; none without a search section."""
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
            usable[name] = _tried(one)
            complaints = [(value, _complaint(config, {name: value})) for value in usable[name]]
            found += [Problem(f"{where} = {_shown(value)}", text) for value, text in complaints if text]
    if not found:
        found += _combinations(config, usable)
    if isinstance(config.teacher, EmbeddedTeacher) and "cost_usd" in search.objective:
        found.append(Problem("search.objective", "cost_usd is always 0 for an embedded teacher; use tokens"))
    return found


def _tried(one: Range) -> list[Value]:
    """The values to check: all of a short range, the ends of a long one."""
    listed = one.values()
    if listed is None:
        low, high = one.ends
        # Also one in between, since the ends of a continuous range may be whole numbers.
        return [int(low), int(high)] if one.randint is not None else [low, one.at(0.37), high]
    return list(listed) if len(listed) <= MOST_COMBINATIONS else [listed[0], listed[-1]]


def _combinations(config: Config, usable: Mapping[str, Sequence[Value]]) -> list[Problem]:
    """Combinations of valid values that contradict each other."""
    together: Iterator[tuple[Value, ...]] = itertools.product(*usable.values())
    if math.prod(map(len, usable.values())) > MOST_COMBINATIONS:
        together = itertools.product(*((values[0], values[-1]) for values in usable.values()))
    found: dict[str, Problem] = {}
    for values in itertools.islice(together, MOST_COMBINATIONS):
        point = dict(zip(usable, values, strict=True))
        complaint = _complaint(config, point)
        if complaint:
            shown = ", ".join(f"{name} = {_shown(value)}" for name, value in point.items())
            found.setdefault(complaint, Problem("search.space", f"{shown} contradict each other: {complaint}"))
    return list(found.values())


def _complaint(config: Config, point: Point) -> str:
    """Why the config rejects ``point``, or an empty string."""
    try:
        apply(config, point)
    except ValidationError as error:
        return "; ".join(problem.message for problem in explain(error, ""))
    return ""


def size(search: SearchConfig) -> int | None:
    """The number of points in the space, None if it is infinite."""
    counts = [one.values() for one in search.space.values()]
    return math.prod(len(values) for values in counts if values is not None) if None not in counts else None


def grid(search: SearchConfig) -> Iterator[dict[str, Value]]:
    """All points of a finite space, the last field fastest."""
    listed = [one.values() or () for one in search.space.values()]
    for values in itertools.product(*listed):
        yield dict(zip(search.space, values, strict=True))


def random_points(search: SearchConfig) -> Iterator[dict[str, Value]]:
    """Distinct points, endless unless the space is finite. The n-th does not depend on how many are taken."""
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
    """The points of all trials, at most ``search.trials``; None for TPE, which chooses them as it runs."""
    if search.searcher == "tpe":
        return None
    points = grid(search) if search.searcher == "grid" else random_points(search)
    return list(itertools.islice(points, search.trials))


def digest(point: Point) -> str:
    """The name of a point."""
    return draws.digest(jsonable(point), size=6)


def jsonable(point: Point) -> dict[str, Any]:
    """A point as plain JSON data; ``from_json`` reads it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in point.items()}


def from_json(data: Mapping[str, Any]) -> dict[str, Value]:
    """The point that ``jsonable`` wrote."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


def encode(search: SearchConfig, point: Point) -> dict[str, Any]:
    """A point as Optuna takes it; choices that are lists become JSON."""
    return {name: _category(value) if search.space[name].choice is not None else value for name, value in point.items()}


def decode(search: SearchConfig, suggested: Mapping[str, Any]) -> dict[str, Value]:
    """The point of Optuna's suggestion."""
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
    """A point as readable text; field names without their section."""

    def put(value: Value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else _shown(value) if isinstance(value, tuple) else str(value)

    return ", ".join(f"{name.split('.', 1)[1]} {put(value)}" for name, value in point.items())
