"""Fields that a study's sources may set; a setting applies to its own source only."""

from __future__ import annotations

import pytest

from potstill.errors import InputError
from potstill.study.config import cell_config, parse_study


def _study(**settings):
    more = {"name": "more", "of": "promptmix_no_mixup", "set": settings}
    return parse_study({"tasks": ["trec6"], "sources": ["real", more, "promptmix_no_mixup"]})


@pytest.mark.parametrize(
    "field", ["task.seeds_per_class", "student.epochs", "teacher.model", "ledger.uri", "storage", "seed", "augment"]
)
def test_a_source_sets_only_how_its_texts_are_made(field):
    with pytest.raises(InputError) as caught:
        _study(**{field: 8, "relabel.votes": 2})
    (problem,) = caught.value.problems
    assert problem.where == f"study: sources: 'more': set.{field}"
    assert problem.message.startswith("only fields of augment and relabel can be set")


def test_a_subfield_of_a_plain_field_is_a_problem():
    with pytest.raises(InputError, match=r"augment\.per_class"):
        _study(**{"augment.per_class.x": 8})


def test_a_setting_of_one_source_does_not_reach_related_sources():
    study = _study(**{"augment.alpha.low": 0.5})
    _, more, plain = (cell_config(study, study.tasks[0], one.source, "embedded", 0, classes=2) for one in study.sources)
    assert (more.augment.alpha.low, plain.augment.alpha.low) == (0.5, 1.0)
