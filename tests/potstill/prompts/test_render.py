"""Rendered prompts, verbatim where the wording matters."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import pytest

from potstill.config import AugmentConfig
from potstill.config.teacher import EmbeddedTeacher, OpenAITeacher
from potstill.endpoint.chat import Abilities, body
from potstill.prompts.contents import ChoosePrompt, ClassCard, Context, WritePrompt, card
from potstill.prompts.render import choose_renderer, render, to_requests
from potstill.rows import Request, Sampling
from potstill.teacher import Teacher, TeacherIdentity
from tests.support.made_up import IDENTITY, make_seeds, make_task, plan

CARDS = (ClassCard("city", "A city.", ("Bonn is  small",)), ClassCard("tool", "A tool.", ("a saw", "an axe")))


def _write(**changes: object) -> WritePrompt:
    return WritePrompt(
        **{"task": "Things.", "text_kind": "sentence", "source": "plain sentences", "cards": CARDS, **changes}
    )  # type: ignore[arg-type]


def test_a_list_continues_the_seeds_of_the_target() -> None:
    (message,), stop = render(_write(), "list")
    assert message.role == "prompt"
    assert message.content == "Plain sentences, sorted by class.\n\ntool: A tool.\n1. a saw\n2. an axe\n3."
    assert stop == ("\n",)


@pytest.mark.parametrize(
    ("alpha", "ending"),
    [(0.95, "2. an axe\n3."), (0.8, "tool, with a touch of city:\n1."), (0.5, "tool, close to city:\n1.")],
)
def test_a_list_describes_the_mixture(alpha: float, ending: str) -> None:
    (message,), _ = render(_write(mix="city", alpha=alpha), "list")
    assert message.content.endswith(ending)


def test_a_list_puts_the_topic_last() -> None:
    (message,), _ = render(_write(context=Context(topic="wood", style="terse")), "list")
    assert message.content.endswith("2. an axe\n\ntool, about wood:\n1.")


@pytest.mark.parametrize(("alpha", "shares"), [(0.55, ("55%", "45%")), (0.8, ("80%", "20%")), (0.9, ("90%", "10%"))])
def test_chat_states_the_shares(alpha: float, shares: tuple[str, str]) -> None:
    (_, user), _ = render(_write(mix="city", alpha=alpha), "chat")
    assert f"{shares[0]} to the class 'tool' and {shares[1]} to the class 'city'" in user.content
    assert "- Bonn is small" in user.content
    assert "- an axe" in user.content
    (_, bare), _ = render(replace(_write(), cards=tuple(replace(one, examples=()) for one in CARDS)), "chat")
    assert "Imitate" in user.content
    assert "Imitate" not in bare.content, "there is nothing to imitate"


def test_choosing_ends_at_the_answer() -> None:
    prompt = ChoosePrompt("Things.", "sentence", "plain sentences", CARDS, (("a saw", "tool"),), "an\naxe")
    (message,), _ = render(prompt, "list")
    assert message.content == "city: A city.\ntool: A tool.\n\nSentence: a saw\nClass: tool\n\nSentence: an axe\nClass:"
    (user,), _ = render(prompt, "chat")
    assert user.role == "user"
    assert user.content.endswith("Class:")


def test_class_names_are_readable() -> None:
    assert card(make_task(), "city_name").name == "city name"


@pytest.mark.parametrize(
    ("provider", "model", "renderer"),
    [
        ("embedded", "smollm2-135m-instruct", "list"),
        ("embedded", "Qwen2.5-7B-Instruct", "chat"),
        ("embedded", "qwen2.5-0.5b", "list"),
        ("embedded", "mine", "list"),
        ("api.openai.com", "gpt-4o-mini", "codes"),
    ],
)
def test_the_renderer_fits_the_model(provider: str, model: str, renderer: str) -> None:
    assert choose_renderer("auto", TeacherIdentity(provider, model)) == renderer


def _renderers(kind: type[EmbeddedTeacher | OpenAITeacher]) -> list[str]:
    """The allowed values of ``teacher.renderer`` for this kind of teacher."""
    return list(get_args(kind.model_fields["renderer"].annotation))


@pytest.mark.parametrize("classes", [3, 70])
@pytest.mark.parametrize(
    ("kind", "provider", "configured"),
    [(EmbeddedTeacher, "embedded", name) for name in _renderers(EmbeddedTeacher)]
    + [(OpenAITeacher, "api.openai.com", name) for name in _renderers(OpenAITeacher)],
)
def test_the_prompt_defines_every_allowed_answer(kind: type, provider: str, configured: str, classes: int) -> None:
    """What the backend scores or locks the answer to stands in the prompt as the name of a class, and is what the
    examples are answered with."""
    names = [f"kind no. {i:02}" for i in range(classes)]
    cards = tuple(ClassCard(name, f"The {i}th kind.") for i, name in enumerate(names))
    prompt = ChoosePrompt("Things.", "sentence", "sentences", cards, (("a saw", names[1]),), "an axe")
    renderer = choose_renderer(configured, TeacherIdentity(provider, "some-7b"))
    messages, stop = render(prompt, renderer)
    request = Request(
        "relabel", "t", "s", renderer, provider, "some-7b", None, messages, Sampling(stop=stop), choices=tuple(names)
    )
    answers = names
    if kind is OpenAITeacher:
        (schema,) = body(request, "m", Abilities())["response_format"]["json_schema"]["schema"]["properties"].values()
        answers = schema["enum"]
    said = messages[-1].content
    for i, (name, answer) in enumerate(zip(names, answers, strict=True)):
        heading = f"{answer}. {name}" if answer != name and kind is OpenAITeacher else name
        assert re.search(rf"^\W*(?:{re.escape(heading)}|{re.escape(name)}\. {re.escape(name)}): The {i}th", said, re.M)
    assert f"a saw\nClass: {answers[1]}\n" in said


def test_requests_carry_their_draft() -> None:
    drafts = list(plan(make_task(), make_seeds(), AugmentConfig(texts_per_reply=4), 0, {"tool": (0, 3)}))
    sampling = Sampling(0.7, 0.9, 50, ("END",))
    listed, chatted = (
        list(to_requests(drafts, Teacher(IDENTITY, renderer), sampling, "things", "promptmix"))
        for renderer in ("list", "chat")
    )
    assert listed[0].sampling == Sampling(0.7, 0.9, 50, ("END", "\n"))
    assert chatted[0].sampling == Sampling(0.7, 0.9, 200, ("END",))
    for requests in (listed, chatted):
        assert [(r.target_label, r.mix_label, r.alpha) for r in requests] == [
            (d.target_label, d.mix_label, d.alpha) for d in drafts
        ]
    assert [r.exemplar_ids for r in chatted] == [d.exemplar_ids for d in drafts]
    # A list shows only the target class and its seeds.
    for request, draft in zip(listed, drafts, strict=True):
        assert 0 < len(request.exemplar_ids) == len(draft.prompt.target.examples)
        assert set(request.exemplar_ids) < set(draft.exemplar_ids)
