import pytest
import yaml

from potstill.config import Config, load, parse
from potstill.config.sections import fields
from potstill.errors import InputError


def problems(content, overrides=(), tmp_path=None) -> str:
    if tmp_path is not None:
        path = tmp_path / "c.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        with pytest.raises(InputError) as caught:
            load(path, overrides)
    else:
        with pytest.raises(InputError) as caught:
            parse(content)
    return str(caught.value)


def test_a_task_name_is_a_whole_config():
    config = parse({"task": "trec6"})
    assert config.task.preset == "trec6"
    assert config.storage.endswith("/runs")
    assert config.ledger.uri.startswith("sqlite:////")


def test_all_problems_are_reported_at_once():
    text = problems({"task": "t", "augment": {"per_class": 0, "shotz": 2}, "student": {"zero_stage": 7}})
    lines = text.splitlines()
    assert len(lines) == 3
    assert "augment.per_class = 0: " in text
    assert "greater than or equal to 1" in text
    assert "augment.shotz: no such field" in text
    assert "student.zero_stage" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "task: is required"),
        ({"task": "t", "augment": {"shots": 3}}, "augment.shots = 3 is more than task.seeds_per_class = 2"),
        ({"task": "t", "augment": {"alpha": {"low": 0.9, "high": 0.6}}}, "low (0.9) must not be above high (0.6)"),
        ({"task": "t", "augment": {"strategy": "magic"}}, "'promptmix'"),
        ({"task": "t", "relabel": {"min_confidence": "high"}}, "auto"),
    ],
)
def test_a_problem_names_field_value_and_what_is_allowed(content, expected):
    assert expected in problems(content)


def test_a_removed_field_is_accepted_only_if_it_is_off():
    assert parse({"task": "t", "relabel": {"channel": "off"}}) == parse({"task": "t"})
    assert "relabel.channel: no such field" in problems({"task": "t", "relabel": {"channel": "on"}})


def test_a_wrong_field_does_not_hide_fields_that_contradict_each_other():
    lines = problems({"task": "t", "student": {"epochs": 0}, "augment": {"shots": 3}}).splitlines()
    assert len(lines) == 2
    assert any("augment.shots = 3 is more than task.seeds_per_class = 2" in line for line in lines)


def test_files_that_cannot_be_used(tmp_path):
    assert "a list" not in problems("- a list", tmp_path=tmp_path)
    assert "must be a mapping" in problems("- a list", tmp_path=tmp_path)
    assert "not valid YAML" in problems("a: [1", tmp_path=tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "absent.yaml")


def test_set_overrides_fields_of_any_depth(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("task: trec6\naugment: {per_class: 10}\n")
    config = load(path, ["augment.per_class=50", "augment.alpha.beta=[2, 2]", "task.data_dir=/data", "seed=3"])
    assert (config.augment.per_class, config.augment.alpha.beta, config.seed) == (50, (2.0, 2.0), 3)
    assert (config.task.preset, config.task.data_dir) == ("trec6", "/data")
    assert "--set nonsense" in problems("task: t", ["nonsense"], tmp_path)


def test_the_digest_depends_on_fields_that_change_the_result():
    base = parse({"task": "t"})
    same = parse(
        {
            "task": {"preset": "t", "data_dir": "/x"},
            "storage": "/tmp/x",
            "teacher": {"actors": 3},
            "tracking": {"uri": "sqlite:////x"},
        }
    )
    assert base.digest() == same.digest()
    for other in (
        {"seed": 1},
        {"student": {"seed": 1}},
        {"augment": {"temperature": 0.9}},
        {"teacher": {"model": "/m"}},
    ):
        assert parse({"task": "t", **other}).digest() != base.digest()


def test_every_field_is_described():
    assert [name for name, field in fields(Config) if not field.description] == []


def test_the_digest_ignores_fields_that_do_not_change_the_result():
    idle = {"workers": 2, "micro_batch_tokens": 512, "max_failures": 0, "offload_optimizer": True}
    base = {"task": "t", "student": {"zero_stage": 1}}
    assert parse({**base, "student": {"zero_stage": 1, **idle}}).digest() == parse(base).digest()
    assert parse({**base, "task": "/elsewhere/t"}).digest() == parse(base).digest()


@pytest.mark.parametrize(
    ("section", "field", "values", "allowed"),
    [
        ("student", "learning_rate", [0, -1e-4, float("inf"), float("nan"), "high"], "'auto'"),
        ("student", "micro_batch_tokens", [7, "many"], "'auto'"),
        ("relabel", "min_confidence", [-0.1, 1.1, "high"], "'auto'"),
    ],
)
def test_errors_of_number_or_auto_fields_are_one_line(section, field, values, allowed):
    for value in values:
        (line,) = problems({"task": "t", section: {field: value}}).splitlines()
        assert line.startswith(f"config: {section}.{field} = {value!r}: Input should be ")
        assert line.endswith(f" or {allowed}")
    with pytest.raises(InputError) as caught:
        parse({"task": "t", "student": {"learning_rate": "high", "micro_batch_tokens": 1, "epochs": 0}})
    assert len(caught.value.problems) == 3


def test_numbers_and_auto_are_accepted():
    student = parse({"task": "t", "student": {"learning_rate": "1e-4", "micro_batch_tokens": 8}}).student
    assert (student.learning_rate, student.micro_batch_tokens) == (1e-4, 8)
    assert parse({"task": "t", "relabel": {"min_confidence": 1}}).relabel.min_confidence == 1.0
    assert parse({"task": "t", "student": {"learning_rate": "auto"}}).student.learning_rate == "auto"


def test_rate_settings_are_refused_in_batch_mode():
    batch = {"kind": "openai", "model": "m", "mode": "batch"}
    assert Config.model_validate({"task": "trec6", "teacher": batch}).teacher.mode == "batch"
    with pytest.raises(ValueError, match="requests_per_minute, actors: no effect in mode: batch"):
        Config.model_validate({"task": "trec6", "teacher": {**batch, "requests_per_minute": 60, "actors": 2}})
    modes = [
        Config.model_validate({"task": "trec6", "teacher": {**batch, "mode": mode}}) for mode in ("batch", "realtime")
    ]
    assert modes[0].digest() == modes[1].digest()  # the same run, the same answers


def test_a_new_field_that_is_off_keeps_the_digest():
    usual = parse({"task": "t"})
    assert parse({"task": "t", "student": {"early_stopping": False}}).digest() == usual.digest()
    assert parse({"task": "t", "student": {"early_stopping": True}}).digest() != usual.digest()
    assert parse({"task": "t", "student": {"workers": 3}}).digest() == usual.digest()
