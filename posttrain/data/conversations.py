"""Conversations: from whatever a column holds to messages, and from whole conversations to prompt and answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.data.decoding import DataError
from posttrain.data.values import plain, text_of

Messages = list[dict[str, Any]]

_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""ShareGPT's names, and spellings of the usual ones; a role that is not here stays as it is."""
ASKS = ("user", "system")
"""Roles whose turn ends an answer: what they say is nothing the model learns."""
_MARK = re.compile(r"\n\n(Human|Assistant):")
_SPOKEN = {"Human": "user", "Assistant": "assistant"}


class Dropped(Exception):
    """This row is not trained on; the message is the reason it is counted under."""


def as_messages(value: Any, role: str) -> Messages:
    """Text of `role`, one message, or a list of them, as [{"role", "content"}].

    ShareGPT's from and value are translated, a marked dialogue ("\\n\\nHuman: ... \\n\\nAssistant: ...") is split into
    its turns. Raises Dropped for a message without content, DataError for what is no conversation.
    """
    if isinstance(value, str):
        return dialogue(value) if is_dialogue(value) else [{"role": role, "content": value}]
    value = plain(value)
    found = value if isinstance(value, list) else [value]
    if len(found) == 1 and isinstance(found[0], str):
        return as_messages(found[0], role)
    return [_message(plain(one)) for one in found]


def _message(found: Any) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise DataError(f"a message is a mapping with role and content, not {type(found).__name__}")
    message = {key: value for key, value in found.items() if value is not None or key == "content"}
    if "from" in message and "value" in found:
        message = {"role": message["from"], "content": found["value"]}
    named = {"role", "content"} <= found.keys() or {"from", "value"} <= found.keys()
    if not named and not ("role" in message and message.get("tool_calls")):
        raise DataError(
            f"a message needs role and content (or from and value); this one has {', '.join(map(str, found))}"
        )
    role = message.get("role")
    if not isinstance(role, str):
        raise Dropped("a message has no role")
    content = _content(message.get("content"))
    if content is None:
        if not message.get("tool_calls"):
            raise Dropped("a message has no content")
        content = ""
    return {**message, "role": _ROLES.get(role.strip().lower(), role), "content": content}


def _content(value: Any) -> str | None:
    """Text; of a list of parts ({"type": "text", "text": ...}) their texts."""
    value = plain(value)
    if not isinstance(value, list) or not all(isinstance(part, Mapping) for part in value) or not value:
        return text_of(value, "content")
    for part in value:
        if part.get("type", "text") != "text":
            raise DataError(f"a message holds a part of type {part['type']!r}; only text is trained on")
    return "".join(str(part.get("text") or "") for part in value)


def is_dialogue(text: str) -> bool:
    """Whether a text is a dialogue with marks, as HH-RLHF has them."""
    return text.startswith("\n\nHuman:") and "\n\nAssistant:" in text


def dialogue(text: str) -> Messages:
    """The turns of a marked dialogue. Two turns of one speaker in a row are one, with an empty line between."""
    messages: Messages = []
    parts = _MARK.split(text)
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        role = _SPOKEN[speaker]
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{said.strip()}".strip()
        else:
            messages.append({"role": role, "content": said.strip()})
    return messages


def same_turn(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two messages say the same; blanks around the words and keys beside them do not count."""
    return (
        one["role"] == other["role"]
        and one["content"].strip() == other["content"].strip()
        and one.get("tool_calls") == other.get("tool_calls")
    )


def shared_turns(first: Messages, second: Messages) -> int:
    """How many turns two conversations have in common at their beginning."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if not same_turn(one, other):
            break
        count += 1
    return count


def is_whole(messages: Messages) -> bool:
    """Whether these messages are a conversation with its question, rather than an answer alone."""
    return bool(messages) and messages[0]["role"] in ASKS


def after_prompt(prompt: Messages, conversation: Messages, name: str) -> tuple[Messages, Messages]:
    """A whole conversation cut behind the prompt's turns: (prompt, the rest).

    The prompt's turns stand at the conversation's beginning; where only a part of it is given as the prompt, they are
    its last question. A system message that one of them lacks is taken from the other. Raises Dropped where the
    conversation is about something else.
    """
    system = [message for message in prompt if message["role"] == "system"]
    asked = [message for message in prompt if message["role"] != "system"]
    own = [message for message in conversation if message["role"] == "system"]
    said = [message for message in conversation if message["role"] != "system"]
    system = system or own[:1]
    if asked and shared_turns(asked, said) == len(asked):
        return [*system, *said[: len(asked)]], said[len(asked) :]
    last = last_question(said)
    if asked and len(asked) <= last and shared_turns(asked, said[last - len(asked) :]) == len(asked):
        return [*system, *said[:last]], said[last:]
    raise Dropped(f"{name} does not continue the prompt")


def last_question(messages: Messages) -> int:
    """Where the last answer begins: behind the last turn of somebody else than the assistant and its tools."""
    end = len(messages)
    while end and messages[end - 1]["role"] not in ASKS:
        end -= 1
    return end


def first_answer(messages: Messages) -> int:
    """Where the first answer to a user begins; the number of messages where there is none."""
    asked = False
    for position, message in enumerate(messages):
        if asked and message["role"] == "assistant":
            return position
        asked = asked or message["role"] == "user"
    return len(messages)


def cut(messages: Messages, at: Callable[[Messages], int], name: str) -> tuple[Messages, Messages]:
    """A lone conversation as prompt and answer; what stands behind its last answer is left out."""
    end = max((i + 1 for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
    if not end:
        raise Dropped(f"no {name}")
    messages = messages[:end]
    start = at(messages)
    if not messages[:start] or not any(message["role"] == "user" for message in messages[:start]):
        raise Dropped("no prompt")
    if not messages[start:]:
        raise Dropped(f"no {name}")
    return messages[:start], messages[start:]


def check_answer(answer: Messages, name: str, *, turns: bool) -> None:
    """Raises Dropped where `answer` is none: empty, begun by somebody else, or (unless `turns`) asked into."""
    if not answer or not any(m["content"].strip() or m.get("tool_calls") for m in answer):
        raise Dropped(f"no {name}")
    if answer[0]["role"] != "assistant":
        raise Dropped(f"{name} does not begin with the assistant's turn")
    if answer[-1]["role"] in ASKS:
        raise Dropped(f"{name} ends with a {answer[-1]['role']}'s turn")
    if not turns and any(message["role"] in ASKS for message in answer):
        raise Dropped(f"{name} holds a user's turn")
