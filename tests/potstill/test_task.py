import pytest

from potstill.errors import InputError
from potstill.task import find, read

GOOD = """
name: pets
description: Which pet a message is about.
classes:
  cat: It is about a cat.
  dog: {description: It is about a dog., prompt_name: hound}
data: {files: {train: train.jsonl, test: test.jsonl}}
seeds:
  - {text: She purrs a lot., label: cat}
"""


def write(tmp_path, text):
    path = tmp_path / "pets.yaml"
    path.write_text(text)
    return path


def test_a_preset_is_read(tmp_path):
    task = read(write(tmp_path, GOOD))
    assert task.labels == ("cat", "dog")
    assert task.prompt_name("dog") == "hound"
    assert task.classes["cat"].description == "It is about a cat."


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  dog:", "  cat:", "'cat' stands twice"),
        ("  dog:", "  Cat:", "differ only in case"),
        ("label: cat", "label: fish", "seeds names 'fish', not among the classes 'cat', 'dog'"),
        ("name: pets", "nam: pets", "nam: no such field"),
        ("data: {files", "data: {fils", "fils: no such field"),
        ("text: She purrs a lot.", "text: ''", "at least 1 character"),
    ],
)
def test_a_bad_preset_says_where_and_what(tmp_path, old, new, expected):
    with pytest.raises(InputError) as caught:
        read(write(tmp_path, GOOD.replace(old, new)))
    assert expected in str(caught.value)
    assert "pets.yaml" in str(caught.value)


def test_unknown_tasks_list_the_known():
    with pytest.raises(InputError, match=r"no such task; known: .*trec6"):
        find("trek6")


def test_every_shipped_preset_is_valid():
    from potstill.task import PRESETS

    paths = [*PRESETS.glob("*.yaml"), *PRESETS.glob("*/*.yaml")]
    assert {path.stem for path in paths} >= {
        "demo",
        "trec6",
        "subj",
        "banking77",
        "twitter_complaints",
        "sms_spam",
        "ag_news",
    }
    for path in paths:
        task = read(path)
        assert task.name == path.stem
        assert find(task.name) == path
