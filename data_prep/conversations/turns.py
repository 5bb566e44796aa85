"""Read the turns of a conversation: a list of messages with roles, a text, or a transcript of HH-RLHF."""

import re
from typing import Any

from data_prep.conversations.conversation import Role, Turn, UnusableRecord
from data_prep.documents.shards import whole_text

HH_MARK = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def turns_of(value: object, name: str, *, role: Role = "user") -> tuple[Turn, ...]:
    """Return the turns of a text, which is one turn of `role`, or of a list of messages with role and content.

    UnusableRecord: `malformed`, `unknown_role` (tools have no turn here), or `not_text`.
    """
    if isinstance(value, str):
        return (Turn(role, whole_text(value)),)
    if not isinstance(value, list):
        raise UnusableRecord("malformed", f"{name} is neither text nor a list of messages")
    return tuple(_turn(message, name) for message in value)


def _turn(message: Any, name: str) -> Turn:
    if not isinstance(message, dict) or "role" not in message:
        raise UnusableRecord("malformed", f"{name}: a message must have role and content")
    role = _ROLES.get(str(message["role"]))
    if role is None:
        raise UnusableRecord("unknown_role", whole_text(str(message["role"]))[:60])
    content = message.get("content")
    if isinstance(content, list):  # parts, as in OpenAI's format
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise UnusableRecord("not_text", f"{name}: a message has parts that are not text")
        content = "".join(str(text) for text in texts)
    if message.get("tool_calls") and not content:
        raise UnusableRecord("not_text", f"{name}: a message calls a tool")
    return Turn(role, "" if content is None else _text(content, name))


def _text(content: object, name: str) -> str:
    if not isinstance(content, str):
        raise UnusableRecord("malformed", f"{name}: the content of a message is not text")
    return whole_text(content)


def transcript(value: object) -> tuple[Turn, ...]:
    r"""Return the turns of a transcript of HH-RLHF, in which "\n\nHuman:" and "\n\nAssistant:" begin the turns.

    UnusableRecord: `malformed`: it does not begin with a mark.
    """
    parts = HH_MARK.split(value) if isinstance(value, str) else []
    if len(parts) < 3 or parts[0].strip():
        raise UnusableRecord("malformed", "no transcript that begins with a turn of Human or Assistant")
    roles, texts = parts[1::2], parts[2::2]
    return tuple(Turn(_HH_ROLES[role], whole_text(text.strip())) for role, text in zip(roles, texts, strict=True))
