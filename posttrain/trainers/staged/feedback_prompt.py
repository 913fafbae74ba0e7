"""How the policy is shown a complaint: the conversation, the bad answer, what the user said to it, and a
request.

The structure is the paper's, the wording ours. Prompts become tokens here, because the two ways differ in
how they are cut:

    corrected   the model's chat template; the request stands in the last user turn. Without a template, plain
                lines "User: ...", cut where the model begins a turn of its own. The oldest turns go first.
    reference   as released: plain lines whatever the model, the request as a "System:" line, the first
                `limit` tokens kept, and the answer read from behind the last "Assistant: " of everything
                decoded
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.data.feedback_logs import Complaint
from posttrain.trainers.engines.answers import cut_at, prompt_ids
from posttrain.trainers.preference.pair_rows import drop_oldest_turns

REQUEST = (
    "Give an improved answer to my request before that, taking this feedback into account. "
    "Write the answer only, without mentioning the feedback."
)
LINE_REQUEST = "Improve the answer using the latest feedback and address the concerns in it."
MARKER = "Assistant: "
STOPS = ("\nUser:", "\nSystem:", "\nAssistant:")
_NAMES = {"user": "User", "assistant": "Assistant"}

Message = dict[str, Any]


def plain_lines(messages: list[Message]) -> str:
    """The first system message and a blank line, then "User: ..." and "Assistant: ..." lines; further system
    messages are left out."""
    system = [m["content"] for m in messages[:1] if m["role"] == "system"]
    turns = [f"{_NAMES[m['role']]}: {m['content']}\n" for m in messages if m["role"] in _NAMES]
    return "".join([*(f"{text}\n\n" for text in system), *turns])


def with_feedback(prompt: list[Message], row: Complaint, *, chat: bool) -> list[Message] | str:
    """`prompt` (the row's, perhaps shortened) with the bad answer, the complaint and the request."""
    bad = {"role": "assistant", "content": row.rejected}
    if chat:
        return [*prompt, bad, {"role": "user", "content": f"{row.complaint}\n\n{REQUEST}"}]
    lines = plain_lines([*prompt, bad, {"role": "user", "content": row.complaint}])
    return f"{lines}System: {LINE_REQUEST}\n{MARKER}"


def without_feedback(prompt: list[Message], *, chat: bool) -> list[Message] | str:
    """The prompt as it was asked, for the unguided variant."""
    return prompt if chat else plain_lines(prompt) + MARKER


class FeedbackPrompts:
    """Rows to tokens to sample from, and what was sampled back to an answer.

    limit  most tokens of a prompt
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, guided: bool, compat: str, limit: int) -> None:
        self.tokenizer = tokenizer
        self.guided = guided
        self.as_released = compat == "reference"
        self.chat = tokenizer.chat_template is not None and not self.as_released
        self.limit = limit

    def tokens(self, row: Complaint) -> list[int] | None:
        """None where not even the last turn fits."""
        if self.as_released:
            return prompt_ids(self.tokenizer, self._written(row.prompt, row))[: self.limit]
        kept = drop_oldest_turns(
            row.prompt, lambda turns: len(prompt_ids(self.tokenizer, self._written(turns, row))) <= self.limit
        )
        ids = prompt_ids(self.tokenizer, self._written(kept, row))
        return ids if len(ids) <= self.limit else None

    def answer(self, sampled: str, prompt: list[int]) -> str:
        """The chosen answer in what the model wrote after `prompt`."""
        if self.as_released:
            everything: Any = self.tokenizer.decode(prompt, skip_special_tokens=True)
            return (everything + sampled).rpartition(MARKER)[2]
        return sampled if self.chat else cut_at(sampled, STOPS)

    def _written(self, prompt: list[Message], row: Complaint) -> list[Message] | str:
        if self.guided:
            return with_feedback(prompt, row, chat=self.chat)
        return without_feedback(prompt, chat=self.chat)
