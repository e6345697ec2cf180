"""Points of a space: the configs they define, problems found before anything runs, and common random numbers."""

import itertools

from potstill.config import Config, parse
from potstill.config.search import SearchConfig
from potstill.errors import InputError
from potstill.search import points as search_points

SPACE = {"augment.shots": [1, 2], "augment.alpha.low": {"uniform": [0.5, 0.9], "step": 0.2}}


def config(search, **content):
    return parse({"task": "demo", "search": search, **content})


def complaints(search, **content):
    """All problems of a search section, alone or with the config."""
    try:
        return [str(problem) for problem in search_points.problems(config(search, **content))]
    except InputError as error:
        return [str(problem) for problem in error.problems]


def test_a_point_changes_only_its_fields():
    base = config({"space": {**SPACE, "augment.alpha.beta": [[5, 2], [1, 1]]}})
    made = search_points.apply(base, {"augment.shots": 1, "augment.alpha.beta": (1, 1)})
    assert made.augment.shots == 1
    assert made.augment.alpha.beta == (1, 1)
    assert made.augment.model_copy(update={"shots": 2, "alpha": base.augment.alpha}) == base.augment
    assert (made.student, made.relabel, made.task, made.search) == (base.student, base.relabel, base.task, None)
    assert made.evaluate.compare == ()


def test_the_search_does_not_rename_the_runs_of_a_config():
    assert config({"space": SPACE}).digest() == parse({"task": "demo"}).digest()
    assert parse({"task": {"preset": "demo", "seed": 1}}).digest() != parse({"task": "demo"}).digest()


def test_all_wrong_fields_and_values_are_reported_at_once():
    told = complaints(
        {
            "space": {
                "augment.shot": [1],
                "augment.shots": [1, 3],
                "task.preset": ["demo"],
                "student.seed": [1, 2],
                "student.threads": [1, 2],
                "relabel.neighbours": {"randint": [1, 4]},
                "augment.beta": [[5, 2]],
                "student.epochs": {"uniform": [1, 3]},
            }
        }
    )
    for words in (
        "augment.shot: the config has no field augment.shot",
        "augment.shots = 3: augment.shots = 3 is more than task.seeds_per_class = 2",
        "task.preset: only fields of augment, relabel, student",
        "student.seed: can't be searched",
        "student.threads: can't be searched: it does not change scores",
        "relabel.neighbours = 1",
        "did you mean augment.alpha.beta?",
        "student.epochs = 1.74",
    ):
        assert any(words in line for line in told), (words, told)
    assert len(told) == 8


def test_a_choice_may_be_any_yaml_value():
    mappings = [{}, {"wall_clock_breakdown": True}]
    assert complaints({"space": {"student.deepspeed": mappings}}) == []
    told = complaints({"space": {"augment.shots": [{"a": 1}, 2]}})
    assert any("augment.shots = {'a': 1}" in line for line in told)


def test_contradicting_values_are_found():
    told = complaints({"space": {"augment.alpha.low": [0.5, 0.9], "augment.alpha.high": [0.7, 1.0]}})
    assert len(told) == 1
    assert "augment.alpha.low = 0.9, augment.alpha.high = 0.7 contradict each other" in told[0]


def test_an_embedded_teacher_has_no_cost_to_minimise():
    assert "use tokens" in complaints({"space": SPACE, "objective": ["macro_f1", "cost_usd"]})[0]


def test_an_unknown_metric_is_reported_with_the_known_ones():
    (told,) = complaints({"space": SPACE, "objective": "f1"})
    assert "search.objective.0 = 'f1'" in told
    assert "'macro_f1'" in told


def test_the_grid_has_every_point_once():
    points = list(search_points.grid(SearchConfig(space=SPACE)))
    assert len(points) == search_points.size(SearchConfig(space=SPACE)) == 6
    assert len({search_points.digest(point) for point in points}) == 6
    assert points[0] == {"augment.shots": 1, "augment.alpha.low": 0.5}
    assert points[1] == {"augment.shots": 1, "augment.alpha.low": 0.7}


def test_a_longer_random_search_extends_the_shorter_one():
    space = {**SPACE, "student.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    short = search_points.fixed_points(SearchConfig(space=space, searcher="random", trials=5))
    long = search_points.fixed_points(SearchConfig(space=space, searcher="random", trials=9))
    assert long[:5] == short
    other = search_points.fixed_points(SearchConfig(space=space, searcher="random", trials=5, seed=1))
    assert other != short


def test_adding_a_field_keeps_the_draws_of_the_others():
    one = search_points.random_points(SearchConfig(space={"augment.temperature": {"uniform": [0.5, 1.0]}}))
    two = search_points.random_points(
        SearchConfig(space={"augment.shots": [1, 2], "augment.temperature": {"uniform": [0.5, 1.0]}})
    )
    for a, b in itertools.islice(zip(one, two, strict=False), 5):
        assert a["augment.temperature"] == b["augment.temperature"]


def test_random_points_cover_a_finite_space_once():
    points = list(search_points.random_points(SearchConfig(space=SPACE)))
    assert sorted(map(search_points.digest, points)) == sorted(
        map(search_points.digest, search_points.grid(SearchConfig(space=SPACE)))
    )


def test_points_survive_json_and_optuna():
    search = SearchConfig(space={**SPACE, "augment.alpha.beta": [[5, 2], [1, 1]], "augment.contexts": [True, False]})
    for point in itertools.islice(search_points.grid(search), 24):
        assert search_points.from_json(search_points.jsonable(point)) == point
        encoded = search_points.encode(search, point)
        assert all(value is None or isinstance(value, int | float | str | bool) for value in encoded.values())
        assert search_points.decode(search, encoded) == point


def test_rungs_grow_to_the_complete_config():
    base = config({"space": SPACE, "rungs": 3, "epoch_rungs": 1}, augment={"per_class": 50})
    rungs = search_points.trial_rungs(base, {"augment.shots": 1})
    assert [rung.augment.per_class for rung in rungs] == [13, 25, 50, 50]
    assert [rung.student.epochs for rung in rungs] == [3, 3, 3, 5]
    assert rungs[-1] == search_points.apply(base, {"augment.shots": 1})
    assert all(isinstance(rung, Config) and rung.search is None for rung in rungs)


def test_equal_rungs_are_merged():
    base = config({"space": SPACE, "rungs": 4}, augment={"per_class": 2})
    assert [rung.augment.per_class for rung in search_points.trial_rungs(base, {})] == [1, 2]
