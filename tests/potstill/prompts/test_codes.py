import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.prompts.codes import CODES, code_names, resolve

NAMES = ["app error", "billing", "app", "login"]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=70, unique=True), st.randoms())
def test_codes_are_distinct_and_depend_only_on_the_set_of_names(names, random):
    codes = code_names(names)
    assert len(set(codes.values())) == len(names)
    shuffled = list(names)
    random.shuffle(shuffled)
    assert code_names(shuffled) == codes
    assert list(codes) == names
    if len(names) <= len(CODES):
        assert all(len(code) == 1 for code in codes.values())


@given(st.lists(st.text(st.characters(categories=["L"]), min_size=2), min_size=1, max_size=70, unique_by=str.casefold))
def test_every_code_resolves_to_its_name(names):
    codes = code_names(names)
    assert [resolve(f" {code}.\n", codes) for code in codes.values()] == names


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        ("A", "app"),
        ("**B**", "app error"),
        ("D. login", "login"),
        ("C) billing, since money is mentioned", "billing"),
        ("Billing", "billing"),
        ('"App  Error."', "app error"),
        ("The class is app error.", "app error"),
        ("It is about the app", "app"),
        ("billing or login", None),
        ("Z", None),
        ("apple", None),
        ("", None),
        ("A user cannot pay", None),
    ],
)
def test_free_text_replies(reply, name):
    assert resolve(reply, code_names(NAMES)) == name
