"""What a vLLM server answers to questions about a model in memory: its name, its tokens, its scores, its log-probs."""

from __future__ import annotations

import json
from typing import Any

import torch


class ServedModel:
    """`answer(method, path, body, headers)` for `http_server`.

    spoiled  path -> (status, bytes) that is answered in its place
    asked    (path, body) of each question
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "served", longest: int | None = 64) -> None:
        self.model, self.tokenizer, self.name, self.longest = model.eval(), tokenizer, name, longest
        self.spoiled: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, Any]] = []

    def answer(self, method: str, path: str, body: Any, headers: Any) -> tuple[int, bytes]:
        self.asked.append((path, body))
        if path in self.spoiled:
            return self.spoiled[path]
        found: Any = {
            "/v1/models": self._models,
            "/detokenize": lambda asked: {"prompt": self.tokenizer.decode(asked["tokens"])},
            "/tokenize": lambda asked: {"tokens": self.tokenizer(asked["prompt"])["input_ids"]},
            "/classify": self._classify,
            "/v1/completions": self._completions,
        }[path](body)
        return 200, json.dumps(found).encode()

    def _models(self, _: Any) -> Any:
        return {"data": [{"id": self.name, "max_model_len": self.longest}]}

    @torch.no_grad()
    def _classify(self, asked: Any) -> Any:
        assert asked["use_activation"] is False
        rows = [self.model(torch.tensor([ids])).logits[0].tolist() for ids in asked["input"]]
        return {"data": [{"index": i, "probs": row} for i, row in reversed(list(enumerate(rows)))]}

    @torch.no_grad()
    def _completions(self, asked: Any) -> Any:
        assert (asked["max_tokens"], asked["prompt_logprobs"]) == (1, 0)
        choices = []
        for i, ids in enumerate(asked["prompt"]):
            logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            told: list[Any] = [None]
            for place in range(1, len(ids)):
                told.append({str(ids[place]): {"logprob": logprobs[place - 1, ids[place]].item()}})
            choices.append({"index": i, "prompt_logprobs": told})
        return {"choices": choices}
