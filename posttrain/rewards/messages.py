"""Completions as text and as messages: a reward reads one or the other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

Messages = list[dict[str, Any]]
_REASONING = ("reasoning_content", "reasoning", "thinking")  # where chat templates' parsers put it


def text_of(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """What the model wrote: text as it is; of a conversation the assistant's messages, one below the other.

    Reasoning that was parsed off its message stands before it as <think>...</think>, tool calls behind it as
    <tool_call>{"name": ..., "arguments": ...}</tool_call>. What tools answered is not the model's and left out.
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(_message_text(message) for message in completion if message["role"] == "assistant")


def messages_of(completion: str | Sequence[Mapping[str, Any]]) -> Messages:
    """A conversation as it is; text as one message of the assistant's."""
    if isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return [dict(message) for message in completion]


def transcript_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """A response with tools, to read: who said what, one below the other.

    [model calls] calc(e='17*46')
    [calc] 782
    [model] 782
    """
    lines = []
    for message in messages:
        content = _content_text(message.get("content"))
        if message["role"] != "assistant":
            lines.append(f"[{message.get('name') or message['role']}] {content}")
            continue
        calls = [_call_shown(call) for call in message.get("tool_calls") or ()]
        lines += [f"[model] {content}"] if content or not calls else []
        lines += [f"[model calls] {call}" for call in calls]
    return "\n".join(lines)


def _call_shown(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, Mapping):
        return (
            f"{function.get('name')}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
        )
    return f"{function.get('name')}({arguments})"


def _message_text(message: Mapping[str, Any]) -> str:
    reasoning = next((message[key] for key in _REASONING if message.get(key)), None)
    thought = f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""
    calls = [_call_text(call) for call in message.get("tool_calls") or ()]
    return thought + "\n".join(part for part in (_content_text(message.get("content")), *calls) if part)


def _content_text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block["type"] == "text")


def _call_text(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI's spelling: JSON within JSON
        with contextlib.suppress(ValueError):  # else as the model wrote it
            arguments = json.loads(arguments)
    written = json.dumps(
        {"name": function.get("name"), "arguments": arguments}, ensure_ascii=False, default=str
    )
    return f"<tool_call>\n{written}\n</tool_call>"
