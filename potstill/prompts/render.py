"""Renders prompts as a list to continue (small models) or as chat messages, with names or codes for the classes.

A 135M model completes patterns but does not follow instructions: lists gave 17 usable lines of 30, chat 6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from potstill.draws import digest
from potstill.prompts.codes import code_names
from potstill.prompts.contents import ChoosePrompt, ClassCard, Draft, WritePrompt, percentages
from potstill.rows import Message, Request, Sampling
from potstill.teacher import Teacher, TeacherIdentity

Rendered = tuple[tuple[Message, ...], tuple[str, ...]]

_SMALL = 3e9  # parameters; smaller models continue lists better than they follow instructions


def render(prompt: WritePrompt | ChoosePrompt, renderer: str) -> Rendered:
    """Messages and stop strings of a prompt."""
    write, choose = RENDERERS[renderer]
    return write(prompt) if isinstance(prompt, WritePrompt) else choose(prompt)


def choose_renderer(configured: str, identity: TeacherIdentity) -> str:
    """The renderer's name. auto: "list" for local models that are small or of unknown size, "chat" for other local ones.
    Endpoints only report probabilities of single tokens, so they always get "codes", which constrain their answers."""
    if identity.provider != "embedded":
        return "codes"
    if configured != "auto":
        return configured
    size = re.search(r"(\d+(?:[._]\d+)?)\s*([bm])(?![a-z])", identity.model.lower())
    if size is None:
        return "list"
    return "list" if float(size[1].replace("_", ".")) * (1e9 if size[2] == "b" else 1e6) < _SMALL else "chat"


def texts_per_reply(renderer: str, count: int) -> int:
    """Texts in one reply: ``count`` from a chat model, one from a continued list."""
    return 1 if renderer == "list" else count


def make_request(prompt: WritePrompt | ChoosePrompt, teacher: Teacher, sampling: Sampling, **content: Any) -> Request:
    """The request for ``prompt``; its stop strings are added to those of ``sampling``.

    ``content``: the remaining fields of ``Request``.
    """
    messages, stop = render(prompt, teacher.renderer)
    identity = teacher.identity
    return Request(
        renderer=teacher.renderer,
        provider=identity.provider,
        model=identity.model,
        weights_digest=identity.weights_digest,
        messages=messages,
        sampling=replace(sampling, stop=tuple(dict.fromkeys((*sampling.stop, *stop)))),
        **content,
    )


def to_requests(
    drafts: Iterable[Draft], teacher: Teacher, sampling: Sampling, task: str, strategy: str
) -> Iterator[Request]:
    """One generation request per draft, made lazily. ``sampling.max_tokens`` is per text of the reply."""
    for draft in drafts:
        texts = texts_per_reply(teacher.renderer, draft.prompt.count)
        yield make_request(
            draft.prompt,
            teacher,
            replace(sampling, max_tokens=sampling.max_tokens * texts),
            stage="generate",
            task=task,
            strategy=strategy,
            occurrence=_draw_number(draft),
            target_label=draft.target_label,
            mix_label=draft.mix_label,
            alpha=draft.alpha,
            exemplar_ids=_shown_ids(draft, teacher.renderer),
        )


def _shown_ids(draft: Draft, renderer: str) -> tuple[str, ...]:
    """Ids of the seeds in the rendered prompt: a list shows only the last card, the target class."""
    if renderer != "list" or draft.prompt.form != "cards":
        return draft.exemplar_ids
    return draft.exemplar_ids[len(draft.exemplar_ids) - len(draft.prompt.target.examples) :]


def _draw_number(draft: Draft) -> int:
    """Distinguishes draws whose rendered prompts are equal. It is a hash of the draft, not a counter: alphas rendered
    in the same words must not share answers, and later rounds don't see earlier ones."""
    return int(digest([draft.target_label, draft.mix_label, draft.alpha, draft.occurrence], size=4), 16) >> 1


def _write_list(prompt: WritePrompt) -> Rendered:
    # Shows only the target class and asks for one text, which ends with the line: a 135M model wrote for the target
    # class 74 % of the time, and 46 % with the other classes of the group in the prompt. What varies between requests
    # comes last, so that the model's cache covers the rest. The mixture is described in words, since percentages turn
    # up in the texts; style and length are left out because small models ignore them.
    target = prompt.target
    if prompt.form != "cards":
        return (Message("prompt", _older_form(prompt)),), ("\n",)
    blocks = [f"{_heading(prompt.source)}, sorted by class.", f"{target.name}: {target.description}"]
    number = len(target.examples) + 1
    if target.examples:
        blocks[-1] += f"\n{_numbered(target.examples)}"
    wish = _mixture_in_words(prompt)
    if prompt.context.topic:
        wish = f"{wish}, about {prompt.context.topic}"
    if wish != target.name:
        blocks.append(f"{wish}:\n1.")
    else:
        blocks[-1] += f"\n{number}."
    return (Message("prompt", "\n\n".join(blocks)),), ("\n",)


def _older_form(prompt: WritePrompt) -> str:
    """The prompts of Sahu et al. 2022 and GPT3Mix. Both are completion prompts; chat models get the same text."""
    target = prompt.target
    if prompt.form == "same category":
        shown = f"\n{_numbered(target.examples)}" if target.examples else ""
        return (
            f"The following sentences belong to the same category {target.name!r}:{shown}\n{len(target.examples) + 1}."
        )
    kind = _heading(prompt.text_kind)
    names = [shown.name for shown in prompt.cards]
    lines = [f"{kind}: {_line(text)} (Class: {shown.name})" for shown in prompt.cards for text in shown.examples]
    head = (
        f"Each line is a {prompt.text_kind} with its class. The class is one of {', '.join(map(repr, sorted(names)))}."
    )
    return "\n".join([head, *lines, f"{kind}:"])


def _mixture_in_words(prompt: WritePrompt) -> str:
    name = prompt.target.name
    if prompt.mix is None or prompt.alpha is None or prompt.alpha > 0.9:
        return name
    if prompt.alpha > 0.6:
        return f"{name}, with a touch of {prompt.mix}"
    return f"{name}, close to {prompt.mix}"


def _choose_list(prompt: ChoosePrompt) -> Rendered:
    kind, word = prompt.text_kind.capitalize(), prompt.attribute
    rules = "\n".join(f"{shown.name}: {shown.description}" for shown in prompt.cards)
    if not prompt.described:
        *first, last = [shown.name for shown in prompt.cards]
        rules = f"{word} of each {prompt.text_kind}: {', '.join(first)} or {last}."
    shown = "\n\n".join(f"{kind}: {_line(text)}\n{word}: {name}" for text, name in prompt.shown)
    question = f"{kind}: {_line(prompt.text)}\n{word}:"
    return (Message("prompt", "\n\n".join(part for part in (rules, shown, question) if part)),), ("\n",)


def _write_chat(prompt: WritePrompt) -> Rendered:
    if prompt.form != "cards":
        order = (
            f"Go on with this list by {prompt.count} more lines of the same form. Write these lines and nothing else."
        )
        return (Message("user", f"{order}\n\n{_older_form(prompt)}"),), ()
    cards = "\n\n".join(_card_for_chat(shown, prompt.text_kind) for shown in prompt.cards)
    target, context = prompt.target.name, prompt.context
    wishes = "".join(
        f" {label}: {wish}."
        for label, wish in (("Style", context.style), ("Length", context.length), ("Topic", context.topic))
        if wish
    )
    if prompt.mix is not None and prompt.alpha is not None:
        own, other = percentages(prompt.alpha)
        order = f"each of which belongs {own}% to the class {target!r} and {other}% to the class {prompt.mix!r}"
    else:
        order = f"each of which belongs to the class {target!r}"
    manner = ""
    if any(shown.examples for shown in prompt.cards):
        manner = " Imitate the manner of the examples shown, but don't copy or rephrase them."
    system = f"You write {prompt.source} for a data set. {prompt.task}"
    user = (
        f"{'Classes' if len(prompt.cards) > 1 else 'Class'}:\n\n{cards}\n\n"
        f"Write {prompt.count} new, different examples, {order}.{wishes}{manner} "
        f"Answer with a numbered list of the {prompt.count} examples and nothing else."
    )
    return (Message("system", system), Message("user", user)), ()


def _choose_chat(prompt: ChoosePrompt) -> Rendered:
    cards = "\n".join(f"- {_told(shown, prompt)}" for shown in prompt.cards)
    kind = prompt.text_kind.capitalize()
    shown = "".join(f"{kind}: {text}\nClass: {name}\n\n" for text, name in prompt.shown)
    user = (
        f"{prompt.task}\n\nClasses:\n{cards}\n\n{shown}To which class does this {prompt.text_kind} belong? Answer with the name of one class "
        f"and nothing else.\n\n{kind}: {prompt.text}\nClass:"
    )
    return (Message("user", user),), ("\n",)


def _choose_codes(prompt: ChoosePrompt) -> Rendered:
    codes = code_names([shown.name for shown in prompt.cards])
    cards = "\n".join(f"{codes[shown.name]}. {_told(shown, prompt)}" for shown in prompt.cards)
    kind = prompt.text_kind.capitalize()
    shown = "\n\n".join(f"{kind}: {_line(text)}\nClass: {codes[name]}" for text, name in prompt.shown)
    what = "code" if any(name != code for name, code in codes.items()) else "name"
    parts = [
        prompt.task,
        f"Classes:\n{cards}",
        shown,
        f"To which class does this {prompt.text_kind} belong? Answer with the {what} of one class and nothing else.",
        f"{kind}: {_line(prompt.text)}\nClass:",
    ]
    return (Message("user", "\n\n".join(part for part in parts if part)),), ("\n",)


def _told(shown: ClassCard, prompt: ChoosePrompt) -> str:
    return f"{shown.name}: {shown.description}" if prompt.described else shown.name


def _card_for_chat(shown: ClassCard, text_kind: str) -> str:
    # Not numbered as the answer is: a 0.5B model went on with a numbered list by repeating it.
    examples = "".join(f"\n- {_line(text)}" for text in shown.examples)
    return f"Class {shown.name!r}: {shown.description}{examples}"


def _numbered(texts: Sequence[str]) -> str:
    return "\n".join(f"{i}. {_line(text)}" for i, text in enumerate(texts, 1))


def _line(text: str) -> str:
    """A text on one line, since a line break ends a list item."""
    return " ".join(text.split())


def _heading(source: str) -> str:
    return source[:1].upper() + source[1:]


RENDERERS: dict[str, tuple[Callable[[WritePrompt], Rendered], Callable[[ChoosePrompt], Rendered]]] = {
    "list": (_write_list, _choose_list),
    "chat": (_write_chat, _choose_chat),
    "codes": (_write_chat, _choose_codes),
}
