"""What a chat template writes between the parts of a conversation, found by rendering it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import UnsupportedModel
from ..plain import shown

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

    A stranger's template may loop for ever or fill the memory, so it is rendered by a process that
    has few seconds and little memory.

    Args:
        template: Source of a Jinja template.
        names: What it may refer to, e.g. ``bos_token``.

    Raises:
        UnsupportedModel: It fails, or does more than write fixed text around what was said.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(module=__name__)],
        input=json.dumps([template, names]),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise _unfit(f"rendering it takes more than {_SECONDS} s or {_BYTES >> 20} MB") from None
    if isinstance(found, str):
        raise _unfit(found)
    return Chat({(before, after): text for before, after, text in found[0]}, found[1])


def main() -> None:
    """Read a template and its names from standard input, and print what it writes."""
    try:
        chat = _find(*json.load(sys.stdin))
        made: Any = [[(*joint, text) for joint, text in chat.joints.items()], chat.image]
    except UnsupportedModel as error:
        made = error.message
    print(json.dumps(made))  # noqa: T201 - the answer to the process that began this one


_SECONDS, _BYTES = 5, 512 << 20
_CHILD = f"""
import resource
resource.setrlimit(resource.RLIMIT_CPU, ({_SECONDS}, {_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({_BYTES}, {_BYTES}))
from {{module}} import main
main()
"""


def _unfit(reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"the chat template: {reason}", hint="write `prompt.py` by hand")


def _find(template: str, names: Mapping[str, Any]) -> Chat:
    try:
        made = _Template(template, names)
        joints = _joints(made)
        image = _image(made, joints)
    except UnsupportedModel:
        raise
    except Exception as error:  # Jinja's, and whatever a template raises
        raise UnsupportedModel(f"it cannot be rendered: {shown(str(error))}") from error
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
    raise UnsupportedModel(f"it refuses a conversation: {shown(message)}")


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
            raise UnsupportedModel(f"it leaves out the message of the {after}")
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
            raise UnsupportedModel("it does more than write fixed text around what was said")
