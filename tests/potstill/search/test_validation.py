"""Validation texts of a search: real ones if there are any, otherwise folds of the seeds and held-back texts."""

from potstill.rows import Example
from potstill.search.validation import from_real, from_written
from potstill.task import LabelledText, TaskData


def texts(count, kind="x"):
    return tuple(LabelledText(f"{kind}{i}", f"{kind} {i}", "ab"[i % 2]) for i in range(count))


def test_real_validation_texts_are_sampled_and_a_smaller_sample_is_a_prefix():
    data = TaskData(texts(4, "seed"), texts(50, "train"), texts(30, "validation"), texts(20, "test"))
    some = from_real(data, 10, seed=0)
    assert len(some.texts) == 10
    assert some.real
    assert set(some.texts) <= set(data.validation)
    assert from_real(data, 20, seed=0).texts[:10] == some.texts
    assert from_real(data, 10, seed=1).digest != some.digest


def test_a_small_split_is_filled_up_with_training_texts():
    data = TaskData(texts(4, "seed"), texts(50, "train"), texts(6, "validation"), texts(20, "test"))
    some = from_real(data, 20, seed=0)
    assert set(data.validation) < set(some.texts) <= {*data.validation, *data.train}
    assert len(some.texts) == 20


def test_a_rare_class_is_included():
    rare = (*texts(400), LabelledText("rare", "a rare text", "c"))
    seeds = (*texts(2, "seed"), LabelledText("seed c", "another rare text", "c"))
    some = from_real(TaskData(seeds, rare, (), texts(20, "test")), 10, seed=0)
    assert {row.label for row in some.texts} == {"a", "b", "c"}
    assert len(some.texts) in (10, 11)


def test_too_few_texts_or_a_missing_class_give_none():
    test = texts(20, "test")
    assert from_real(TaskData(texts(4), (), (), test), 10, seed=0) is None
    assert from_real(TaskData(texts(4), (), texts(8), test), 10, seed=0) is None
    one_class = tuple(row for row in texts(40) if row.label == "a")
    assert from_real(TaskData(texts(4), one_class, (), test), 10, seed=0) is None


def test_held_back_texts_are_the_most_confident_that_the_teacher_confirms():
    def example(i, label, teacher, confidence, kept=True):
        return Example(
            f"e{i}", f"text {i}", label, target_label=label, teacher_label=teacher, confidence=confidence, kept=kept
        )

    examples = [
        example(0, "a", "a", 0.6),
        example(1, "a", "a", 0.9),
        example(2, "a", "b", 0.99),
        example(3, "b", "b", 0.8),
        example(4, "b", "b", 0.95, kept=False),
        example(5, "a", "a", 0.7),
    ]
    seeds = texts(4, "seed")
    found = from_written(seeds, examples, ["a", "b"], per_class=2)
    assert [row.example_id for row in found.texts] == ["e1", "e5", "e3"]
    assert not found.real
    assert len(found.folds) == 2
    assert {row.label for row in found.folds[0]} == {"a", "b"}
    assert sorted(row.example_id for fold in found.folds for row in fold) == [row.example_id for row in seeds]


def test_a_class_with_one_seed_is_not_in_the_folds():
    seeds = (LabelledText("1", "one", "a"), LabelledText("2", "two", "b"), LabelledText("3", "three", "b"))
    found = from_written(seeds, [], ["a", "b"], per_class=2)
    assert all(row.label == "b" for fold in found.folds for row in fold)
