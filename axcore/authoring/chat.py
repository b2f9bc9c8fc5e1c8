"""What a chat template writes between the parts of a conversation, found by rendering it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import UnsupportedModel

_ROLES = ("system", "user", "assistant")
_SAID = "\ue000{}\ue001"  # private use: no template writes it, and none changes it

Joint = tuple[str, str]
"""The roles of two messages that follow each other; "" is the beginning, and the end."""


@dataclass(frozen=True)
class Chat:
    """A chat template as text between messages.

    Attributes:
        joints: What is written between a message of one role and the next of another.
        image: What is written for an image.
    """

    joints: Mapping[Joint, str]
    image: str


def find_chat(template: str, names: Mapping[str, Any]) -> Chat:
    """Find what a template writes.

    Args:
        template: Source of a Jinja template.
        names: What it may refer to, e.g. ``bos_token``.

    Raises:
        UnsupportedModel: It fails, or does more than write fixed text around what was said.
    """
    try:
        made = _Template(template, names)
        joints = _joints(made)
        image = _image(made, joints)
    except UnsupportedModel:
        raise
    except Exception as error:  # Jinja's, and whatever a template raises
        raise UnsupportedModel(
            f"the chat template cannot be rendered\n  {type(error).__name__}: {error}",
            hint="write `prompt.py` by hand",
        ) from error
    chat = Chat(joints, image)
    _check(chat, made)
    return chat


def written(chat: Chat, messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the prompt that `chat` makes of messages whose content is a list of parts."""
    pieces, role = [], ""
    for message in messages:
        pieces.append(chat.joints[role, message["role"]])
        pieces += [part.get("text", chat.image) for part in message["content"]]
        role = message["role"]
    return "".join([*pieces, chat.joints[role, ""]])


class _Template:
    def __init__(self, source: str, names: Mapping[str, Any]) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raised
        self._template, self._names = environment.from_string(source), names

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return self._template.render(messages=messages, add_generation_prompt=True, **self._names)


def _raised(message: str) -> None:
    raise UnsupportedModel(f"the chat template refuses a conversation: {message}")


def _message(role: str, *parts: str) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if part else {"type": "image"} for part in parts]
    return {"role": role, "content": content}


def _joints(template: _Template) -> dict[Joint, str]:
    """Render two conversations; a template without system messages has no joints for them."""
    found = _between(template, ("user", "assistant", "user"))
    try:
        found |= _between(template, ("system", "user"))
    except Exception:  # as it says that it has no such role
        return found
    return found


def _between(template: _Template, roles: Sequence[str]) -> dict[Joint, str]:
    said = [_SAID.format(index) for index in range(len(roles))]
    rest = template([_message(role, text) for role, text in zip(roles, said, strict=True)])
    found: dict[Joint, str] = {}
    for (before, after), text in zip(pairwise(["", *roles]), said, strict=True):
        literal, mark, rest = rest.partition(text)
        if not mark:
            raise UnsupportedModel(f"the chat template leaves out the message of the {after}")
        found[before, after] = literal
    return {**found, (roles[-1], ""): rest}


def _image(template: _Template, joints: Mapping[Joint, str]) -> str:
    text = _SAID.format(0)
    whole = template([_message("user", "", text)])
    return whole.removeprefix(joints["", "user"]).partition(text)[0]


def _check(chat: Chat, template: _Template) -> None:
    """Compare longer conversations, of several images at other places, with what is rendered."""
    one, two, three = (_SAID.format(index) for index in range(3))
    system = [_message("system", one)] if ("", "system") in chat.joints else []
    for messages in (
        [_message("user", one, ""), _message("assistant", two), _message("user", "", "", three)],
        [*system, _message("user", "", two), _message("assistant", three), _message("user", one)],
    ):
        if written(chat, messages) != template(messages):
            raise UnsupportedModel(
                "the chat template does more than write fixed text around what was said",
                hint="write `prompt.py` by hand",
            )
