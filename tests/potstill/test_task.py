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
        ("  dog:", "  cat:", "'cat' appears twice"),
        ("  dog:", "  Cat:", "differ only in case"),
        ("label: cat", "label: fish", "seeds names 'fish', not among the classes 'cat', 'dog'"),
        ("name: pets", "nam: pets", "nam: no such field"),
        ("data: {files", "data: {fils", "fils: no such field"),
        ("text: She purrs a lot.", "text: ''", "at least 1 character"),
    ],
)
def test_an_error_in_a_preset_names_place_and_cause(tmp_path, old, new, expected):
    with pytest.raises(InputError) as caught:
        read(write(tmp_path, GOOD.replace(old, new)))
    assert expected in str(caught.value)
    assert "pets.yaml" in str(caught.value)


def test_unknown_tasks_list_the_known():
    with pytest.raises(InputError, match=r"no such task; use one of .*trec6"):
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
        "imdb",
        "fewrel_wiki16",
        "semeval2010_task8",
        "financial_phrasebank",
        "go_emotions",
        "tweet_irony",
        "tweet_emotion",
        "sarcasm_news",
        "humor_short_texts",
        "md_agreement",
    }
    for path in paths:
        task = read(path)
        assert task.name == path.stem
        assert find(task.name) == path
        # The hub ids of shipped presets have not been reached.
        assert task.data.hub is None or not task.data.hub.verified
        mapped = set(task.data.label_map.values())
        assert not mapped or mapped == set(task.labels)
        assert all((task.contexts.styles, task.contexts.lengths, task.contexts.topics)) or task.name == "demo"


def test_the_papers_order_of_subjectivity_is_complete():
    """Ten ranks; two candidates share the rank of relation classification."""
    from potstill.task import PRESETS

    places = sorted(task.subjectivity for task in map(read, PRESETS.glob("*.yaml")) if task.subjectivity)
    assert places == [1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_names_are_read_as_written(tmp_path):
    text = """
name: answers
description: Whether a reply agrees.
classes: {yes: It agrees., No: It declines., on: It is on., 010: It is eight., 2024-01-01: It is a date., true: It is so.}
data:
  hub: {dataset: d, config: null, splits: {train: train}, verified: false}
  label_map: {0: yes, off: No}
seeds: [{text: yes, label: yes}, {text: never, label: No}]
"""
    task = read(write(tmp_path, text))
    assert task.labels == ("yes", "No", "on", "010", "2024-01-01", "true")
    assert [(seed.text, seed.label) for seed in task.seeds] == [("yes", "yes"), ("never", "No")]
    assert task.data.label_map == {"0": "yes", "off": "No"}
    assert task.data.hub is not None
    assert (task.data.hub.verified, task.data.hub.config) == (False, None)
    assert read(write(tmp_path, text.replace("verified: false", "verified: true"))).data.hub.verified is True


@pytest.mark.parametrize("twin", ["hound: It is a hound.", "big_dog: {description: A dog too., prompt_name: HOUND}"])
def test_classes_with_the_same_name_in_prompts_are_refused(tmp_path, twin):
    with pytest.raises(InputError, match=r"are both .* in prompts") as caught:
        read(write(tmp_path, GOOD.replace("data: {files", f"  {twin}\ndata: {{files")))
    assert "'dog'" in str(caught.value)
    assert repr(twin.partition(":")[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "can't be read as JSON"),
        ('["cat", "dog"]', "must be a mapping"),
        ('[["cat", "A cat."], ["dog", "A dog."]]', "must be a mapping"),
        ('{"cat": "A cat.", "cat": "A cat."}', "'cat' appears twice"),
        ('{"cat": 5, "dog": "A dog."}', "classes.cat"),
    ],
)
def test_an_invalid_layout_folder_is_refused(tmp_path, content, expected):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(InputError, match=expected):
        read(tmp_path)


def test_a_layout_folder_can_set_the_prompt_name_of_a_class(tmp_path):
    folder = tmp_path / "pets"
    folder.mkdir()
    (folder / "classes.json").write_text('{"cat": "A cat.", "dog": {"description": "A dog.", "prompt_name": "hound"}}')
    assert read(folder).prompt_name("dog") == "hound"


def test_a_name_means_the_shipped_preset(tmp_path, monkeypatch):
    (tmp_path / "trec6").mkdir()
    (tmp_path / "trec6/classes.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find("trec6").suffix == ".yaml"
    assert find("./trec6") == tmp_path / "trec6"
