"""Replies of small and large models, cleaned; and properties that hold for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.texts.parsing import CHATTER, CUT_SHORT, HEADING, OTHER_LIST, clean_line, read_reply


def test_continued_list() -> None:
    assert read_reply(" Who wrote Faust ?\n4. Who is the pope ?\n5. Who was", finish_reason="length").texts == [
        "Who wrote Faust ?",
        "Who is the pope ?",
    ]


def test_one_line_reply_is_kept_when_it_stopped() -> None:
    assert read_reply(" What is rust ?", finish_reason="stop").texts == ["What is rust ?"]
    assert read_reply(" What is rust and", finish_reason="length").texts == []


def test_a_list_on_one_line_is_split() -> None:
    assert read_reply(" Is it far? 2. Who was it? 3. Why?").texts == ["Is it far?", "Who was it?", "Why?"]
    assert read_reply(" It cost 2.50 in 1999. 20 of them came").texts == ["It cost 2.50 in 1999. 20 of them came"]


def test_chat_reply() -> None:
    reply = 'Sure, here are 3 examples:\n\n1. "Where is Bonn?" (85% location, 15% entity)\n2. **Who** is it?\n- 3) What now?\n\nI hope this helps!'
    assert read_reply(reply, finish_reason="stop").texts == ["Where is Bonn?", "Who is it?", "What now?"]


def test_list_ends_where_the_numbers_start_again() -> None:
    assert read_reply(" one thing\n4. another thing\nOther things\n1. a third thing").texts == [
        "one thing",
        "another thing",
    ]
    assert read_reply("1. one thing\n2. another thing\n1. a third thing").texts == ["one thing", "another thing"]


def test_class_headings_are_not_texts() -> None:
    assert read_reply("location: The question asks for a place.", class_names=["location"]).texts == []


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Example 2: It rains", "It rains"),
        ("* It rains", "It rains"),
        ("“It rains”", "It rains"),
        ('He said "no" and left', 'He said "no" and left'),
        ('"Yes" and "no"', '"Yes" and "no"'),
        ("3.5 million people came", "3.5 million people came"),
        ("10:30 is too late", "10:30 is too late"),
        ("It rains (60 % weather)", "It rains"),
        ("It rains (a lot)", "It rains (a lot)"),
        ("  too   many\tspaces ", "too many spaces"),
        ("Call 2 win! Text 80086", "Call 2 win! Text 80086"),
    ],
)
def test_clean_line(line: str, text: str) -> None:
    assert clean_line(line) == text


@given(st.text())
def test_cleaning_twice_changes_nothing(line: str) -> None:
    assert clean_line(clean_line(line)) == clean_line(line)


@given(st.text(), st.sampled_from(["stop", "length", None]))
def test_texts_are_single_clean_lines_without_repeats(reply: str, finish_reason: str | None) -> None:
    texts = read_reply(reply, finish_reason=finish_reason).texts
    assert len(texts) == len(set(texts))
    for text in texts:
        assert text == " ".join(text.split())
        assert "\n" not in text
        assert text


OPENINGS = st.sampled_from(
    ["I can't create", "Here is the message", "Note:", "Great, here", "Sure", "Answer: this", "As an AI"]
)


@given(
    st.lists(
        st.from_regex(r"[A-Z][a-z]{2,8} [a-z]{2,8}", fullmatch=True) | st.builds("{} item".format, OPENINGS),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_a_numbered_list_survives_whole(texts: list[str]) -> None:
    assert read_reply("\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1)), finish_reason="stop").texts == texts


@pytest.mark.parametrize(
    "text",
    [
        "I cannot log in to my account.",
        "I'm sorry, but I want to cancel my plan.",
        "Let me know when my parcel arrives.",
        "I hope you can refund me soon.",
        "Okay I'll be there",
        "Great idea for a film",
        "Here is my order number again?",
        "I can't create an account, the page just hangs.",
        "I'm sorry, but I can't help my neighbour carry it.",
        "I can't write messages to my landlord in this app.",
        "I can't create that folder on the shared drive",
        "I cannot write to the disk any more.",
        "Here is the error message I got yesterday.",
        "Here are the two messages from the courier.",
        "Note: the blue lamp arrived broken.",
        "Great, here we go again",
        "Output: nothing at all, whatever I print",
        "These messages keep coming, please stop them",
        "As an AI researcher I read this with joy",
    ],
)
def test_texts_like_chatter_are_kept(text):
    assert read_reply(text).texts == [text]
    assert read_reply(f"Sure, here are two examples:\n1. {text}\n2. It rains").texts == [text, "It rains"]


@pytest.mark.parametrize(
    "text",
    [
        "Sure!",
        "Sure, here are three examples:",
        "Certainly! Here's a list of three sentences.",
        "Great, here you go:",
        "Here is the list",
        "Here are some texts",
        "Here's an example of a tweet",
        "These sentences show the class.",
        "I hope this helps!",
        "Let me know if you need more.",
        "I'm sorry, but I cannot assist with that.",
        "I can't create examples of that kind.",
        "I cannot generate content that insults people.",
        "Note: these are invented.",
        "As an AI language model, I have no account.",
    ],
)
def test_chatter_around_a_list_is_dropped(text):
    assert read_reply(text).texts == []


@pytest.mark.parametrize(
    ("reply", "finish_reason", "texts", "dropped"),
    [
        ("Sure, here are 2 examples:\n1. It rains\n2. It snows\nI hope this helps!", "stop", 2, {}),
        ("I'm sorry, but I cannot assist with that.", "stop", 0, {CHATTER: 1}),
        ("Sure!\nIt rains\nIt snows", "stop", 2, {CHATTER: 1}),
        ("1. It rains\n2. It sno", "length", 1, {CUT_SHORT: 1}),
        ("It sno", "length", 0, {CUT_SHORT: 1}),
        ("1. weather:\n2. It rains", "stop", 1, {HEADING: 1}),
        ("weather: It rains", "stop", 0, {HEADING: 1}),
        ("weather:\n1. It rains\n2. It snows\n\nfood:\n1. Soup again\n2. No soup", "stop", 2, {OTHER_LIST: 2}),
        ("1. It rains\n1. It rains twice\n2. No soup", "stop", 1, {OTHER_LIST: 2}),
        ("---\n1. ?", "stop", 0, {}),
    ],
)
def test_dropped_lines_are_counted(reply, finish_reason, texts, dropped):
    read = read_reply(reply, finish_reason=finish_reason, class_names=["weather"])
    assert (len(read.texts), read.dropped) == (texts, dropped)
