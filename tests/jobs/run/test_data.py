import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.run.data import load
from potstill.config import parse
from potstill.errors import InputError
from potstill.task import PRESETS
from potstill.texts.filters import normalise

LABELS = {"cat": "About a cat.", "dog": "About a dog."}


def rows(count, split):
    return [(f"{split} message {i} about my {label}", label) for i in range(count) for label in LABELS]


def folder(tmp_path, name="pets", **splits):
    place = tmp_path / name
    place.mkdir(exist_ok=True)
    (place / "classes.json").write_text(json.dumps(LABELS))
    for split, content in {"train": rows(10, "train"), "test": rows(5, "test"), **splits}.items():
        pq.write_table(
            pa.table({"text": [t for t, _ in content], "label": [lab for _, lab in content]}),
            place / f"{split}.parquet",
        )
    return place


def config(path, **task):
    return parse({"task": {"preset": str(path), **task}})


def test_a_layout_folder_is_a_task(tmp_path):
    task, data = load(config(folder(tmp_path)))
    assert task.name == "pets"
    assert [seed.label for seed in data.seeds] == ["cat", "cat", "dog", "dog"]
    assert len(data.test) == 10
    assert len(data.train) + len(data.validation) + len(data.seeds) == 20
    texts = [normalise(row.text) for part in (data.seeds, data.train, data.validation, data.test) for row in part]
    assert len(set(texts)) == len(texts)


def test_more_seeds_keep_the_first_ones(tmp_path):
    path = folder(tmp_path)
    few, many = load(config(path))[1].seeds, load(config(path, seeds_per_class=4))[1].seeds
    assert set(few) < set(many)
    other = load(parse({"task": str(path), "seed": 1}))[1].seeds
    assert set(few) != set(other)


def test_an_official_validation_split_is_used(tmp_path):
    _, data = load(config(folder(tmp_path, validation=rows(2, "validation"))))
    assert {row.text.split()[0] for row in data.validation} == {"validation"}
    assert len(data.train) == 16


def test_seeds_are_never_test_texts(tmp_path):
    test = rows(9, "train")
    for seed in range(3):
        path = folder(tmp_path, test=test)
        _, data = load(
            parse({"task": {"preset": str(path), "seeds_per_class": 1}, "augment": {"shots": 1}, "seed": seed})
        )
        assert {row.text for row in data.seeds} == {"train message 9 about my cat", "train message 9 about my dog"}


def test_test_texts_are_removed_from_train_and_validation(tmp_path):
    leaked = [(text.upper() + "!", label) for text, label in rows(3, "train")]
    for splits in ({}, {"validation": rows(4, "train")}):
        _, data = load(config(folder(tmp_path, test=rows(5, "test") + leaked, **splits)))
        in_test = {normalise(row.text) for row in data.test}
        assert len(in_test) == 16
        assert not in_test & {normalise(row.text) for part in (data.train, data.validation) for row in part}
        assert data.validation


def given(tmp_path, *seeds):
    place = folder(tmp_path)
    content = {
        "name": "pets",
        "description": "Which pet it is.",
        "classes": LABELS,
        "data": {"files": {split: str(place / f"{split}.parquet") for split in ("train", "test")}},
        "seeds": [{"text": text, "label": label} for text, label in seeds],
    }
    (tmp_path / "t.yaml").write_text(json.dumps(content))
    return parse({"task": {"preset": str(tmp_path / "t.yaml"), "seeds_per_class": 1}, "augment": {"shots": 1}})


GIVEN = [("she purrs", "cat"), ("she barks", "dog")]


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ([("TEST message 0 about my cat.", "cat")], "'TEST message 0 about my cat.' is in the test split"),
        ([("She barks!", "dog")], "'She barks!' occurs twice"),
        ([("She barks!", "cat"), ("she purrs", "cat")], "'She barks!' occurs twice (and 1 more)"),
        ([("  ", "cat"), ("\t", "cat")], "'  ' is blank (and 1 more)"),
    ],
)
def test_invalid_seeds_are_reported(tmp_path, seeds, expected):
    assert {seed.text for seed in load(given(tmp_path, *GIVEN))[1].seeds} == {"she purrs", "she barks"}
    with pytest.raises(InputError) as caught:
        load(given(tmp_path, *GIVEN, *seeds))
    (problem,) = caught.value.problems
    assert problem.where.endswith("t.yaml: seeds")
    assert problem.message == expected


def test_labels_of_a_csv_file_are_read_as_written(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{split} one,01\n{split} two,02\n")
    (tmp_path / "t.yaml").write_text(
        "name: t\ndescription: numbers\nclasses: {01: The first., 02: The second.}\n"
        "data: {files: {train: train.csv, test: test.csv}}\n"
    )
    _, data = load(parse({"task": {"preset": str(tmp_path / "t.yaml"), "seeds_per_class": 1}, "augment": {"shots": 1}}))
    assert [row.label for row in data.test] == ["01", "02"]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": [("a cat", "cat"), ("my cat", "cat")]}, "class 'dog' has 0 labelled example(s)"),
        ({"test": [("", "cat"), ("x y", "dog")]}, "text is empty in 1 row(s), the first is row 0"),
        ({"test": [(1, "cat"), (2, "dog")]}, "text is of type int in 2 row(s)"),
        ({"test": [("a b", None), ("x y", "dog")]}, "label is missing in 1 row(s)"),
        ({"test": [("a b", "fish"), ("x y", "dog")]}, "labels not among the classes cat, dog: 'fish' (1)"),
        ({"test": []}, "no test split"),
    ],
)
def test_errors_name_the_bad_data(tmp_path, splits, expected):
    with pytest.raises(InputError) as caught:
        load(config(folder(tmp_path, **splits)))
    assert expected in str(caught.value)


def test_all_problems_are_reported_at_once(tmp_path):
    path = folder(tmp_path, train=[("a", "cat"), ("b", "fish")], test=[("", "cat")])
    with pytest.raises(InputError) as caught:
        load(config(path))
    assert len(caught.value.problems) == 4


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "train.csv").write_text('body,tag\n"hello, cat",0\nold cat,0\nbig dog,1\n"my\ndog",1\n')
    (tmp_path / "test.jsonl").write_text('{"body": "a cat", "tag": "cat"}\n{"body": "a dog", "tag": 1}\n')
    (tmp_path / "t.yaml").write_text(
        "name: t\ndescription: pets\nclasses: {cat: About a cat., dog: About a dog.}\n"
        "data: {files: {train: train.csv, test: test.jsonl}, text_column: body, label_column: tag, label_map: {'0': cat, '1': dog}}\n"
    )
    _, data = load(config(tmp_path / "t.yaml"))
    assert {seed.text for seed in data.seeds} == {"hello, cat", "old cat", "big dog", "my\ndog"}
    assert [row.label for row in data.test] == ["cat", "dog"]
    (tmp_path / "test.jsonl").write_text('{"text": "a cat"}\n')
    with pytest.raises(InputError, match="has no column 'body' and no 'tag', only"):
        load(config(tmp_path / "t.yaml"))


def test_a_hub_data_set_is_read_from_a_local_folder_of_the_same_layout(tmp_path):
    place = tmp_path / "hub"
    place.mkdir()
    for split, count in (("train", 4), ("test", 2)):
        content = rows(count, split)
        pq.write_table(
            pa.table({"text": [t for t, _ in content], "label": [int(lab == "dog") for _, lab in content]}),
            place / f"{split}.parquet",
        )
    (tmp_path / "t.yaml").write_text(
        "name: t\ndescription: pets\nclasses: {cat: About a cat., dog: About a dog.}\n"
        f"data: {{hub: {{dataset: {place}, splits: {{train: train, test: test}}}}, label_map: {{'0': cat, '1': dog}}}}\n"
    )
    _, data = load(config(tmp_path / "t.yaml"))
    assert {row.label for row in data.test} == {"cat", "dog"}


def test_a_missing_data_dir_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"has no .*trec6/test\.parquet"):
        load(parse({"task": {"preset": "trec6", "data_dir": str(tmp_path)}}))


SHARED = Path(__file__).parents[4] / "shared/data"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_fits_its_data(name):
    """Needs copies of the data beside the repository; every label is known, every class has seeds and test texts."""
    if not (SHARED / name / "test.parquet").is_file():
        pytest.skip(f"{SHARED}/{name} does not exist")
    task, data = load(parse({"task": {"preset": name, "data_dir": str(SHARED)}}))
    assert {row.label for row in data.seeds} == {row.label for row in data.test} == set(task.labels)


@pytest.mark.parametrize("ending", ["txt", "jsonl", "parquet"])
def test_texts_without_labels_are_read_and_test_texts_are_not_among_them(tmp_path, ending):
    place = folder(tmp_path)
    texts = ["a new one", "  ", "a new one", "test message 0 about my cat", "another"]
    file = tmp_path / f"texts.{ending}"
    if ending == "txt":
        file.write_text("\n".join(texts))
    elif ending == "jsonl":
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        pq.write_table(pa.table({"text": texts}), file)
    task = {"preset": str(place), "unlabelled": str(file)}
    _, data = load(parse({"task": task, "augment": {"strategy": "annotate"}}))
    assert data.unlabelled == ("a new one", "another")
    assert load(parse({"task": task}))[1].unlabelled == data.unlabelled  # beside those that the teacher writes
    for unused in ({"augment": {"strategy": "eda"}}, {"augment": {"unlabelled": 0}}, {"relabel": {"enabled": False}}):
        assert load(parse({"task": task, **unused}))[1].unlabelled == ()


def test_the_train_split_can_supply_texts_without_labels(tmp_path):
    task = {"preset": str(folder(tmp_path)), "unlabelled": "train"}
    _, data = load(parse({"task": task, "augment": {"strategy": "annotate"}}))
    assert set(data.unlabelled) == {row.text for row in data.train}


@pytest.mark.parametrize(
    ("unlabelled", "expected"),
    [
        (None, "needs texts without labels and the task has none"),
        ("nowhere.txt", "no such file; set task.unlabelled"),
        ("texts.doc", "must be .parquet"),
        ("texts.jsonl", "has no column 'text', only"),
        ("only_test.txt", "holds no text that is not in the test split"),
    ],
)
def test_missing_texts_to_annotate_are_reported(tmp_path, unlabelled, expected):
    place = folder(tmp_path)
    (tmp_path / "texts.doc").write_text("x")
    (tmp_path / "texts.jsonl").write_text(json.dumps({"body": "x"}))
    (tmp_path / "only_test.txt").write_text("test message 0 about my cat\n")
    task = {"preset": str(place), "unlabelled": unlabelled and str(tmp_path / unlabelled)}
    with pytest.raises(InputError, match=expected):
        load(parse({"task": task, "augment": {"strategy": "annotate"}}))
