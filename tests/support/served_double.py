"""What servers answer to questions about a model in memory: its name, its tokens, its scores, its log-probs. vLLM's, or
a reward model's on SGLang or text-embeddings-inference."""

from __future__ import annotations

import json
from typing import Any

import torch


class ServedModel:
    """`answer(method, path, body, headers)` for `http_server`.

    spoiled  path -> (status, bytes) that is answered in its place
    asked    (path, body) of each question
    kind     vllm, sglang or tei
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str = "served", longest: int | None = 64, kind: str = "vllm"
    ) -> None:
        self.model, self.tokenizer, self.name, self.longest = model.eval(), tokenizer, name, longest
        self.kind = kind
        self.spoiled: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, Any]] = []

    def answer(self, method: str, path: str, body: Any, headers: Any) -> tuple[int, bytes]:
        self.asked.append((path, body))
        if path in self.spoiled:
            return self.spoiled[path]
        pages: dict[str, Any] = {"vllm": self._vllm, "sglang": self._sglang, "tei": self._tei}[self.kind]()
        if path not in pages:
            return 404, b'{"detail": "Not Found"}'
        return 200, json.dumps(pages[path](body)).encode()

    def _vllm(self) -> dict[str, Any]:
        return {
            "/v1/models": self._models,
            "/detokenize": lambda asked: {"prompt": self.tokenizer.decode(asked["tokens"])},
            "/tokenize": lambda asked: {"tokens": self.tokenizer(asked["prompt"])["input_ids"]},
            "/classify": self._classify,
            "/v1/completions": self._completions,
        }

    def _sglang(self) -> dict[str, Any]:
        """Its own routes; /v1/classify gives a softmax, which is not to be asked."""
        told = {"model_path": "m", "tokenizer_path": "m", "is_generation": False}
        return {
            "/v1/models": self._models,
            "/get_model_info": lambda _: told,
            "/detokenize": lambda asked: {
                "text": self.tokenizer.decode(
                    asked["tokens"], skip_special_tokens=asked.get("skip_special_tokens", True)
                )
            },
            "/tokenize": lambda asked: {"tokens": self.tokenizer(asked["prompt"])["input_ids"]},
            "/classify": lambda asked: [
                {"embedding": row, "meta_info": {"prompt_tokens": len(ids)}}
                for ids, row in zip(asked["input_ids"], self._logits(asked["input_ids"]), strict=True)
            ],
        }

    def _tei(self) -> dict[str, Any]:
        """Texts alone, cut into tokens there; without `raw_scores` a sigmoid."""
        info = {
            "model_id": self.name,
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_input_length": self.longest,
            "max_client_batch_size": 32,
        }

        def predict(asked: Any) -> Any:
            rows = self._logits([self.tokenizer(text)["input_ids"] for (text,) in asked["inputs"]])
            raw = asked.get("raw_scores", False)
            scored = [[one if raw else 1 / (1 + 2.718281828**-one) for one in row] for row in rows]
            return [
                [
                    {"score": one, "label": f"LABEL_{i}"}
                    for i, one in sorted(enumerate(row), key=lambda x: -x[1])
                ]
                for row in scored
            ]

        return {
            "/info": lambda _: info,
            "/decode": lambda asked: [
                self.tokenizer.decode(ids, skip_special_tokens=asked.get("skip_special_tokens", True))
                for ids in asked["ids"]
            ],
            "/tokenize": lambda asked: [
                [{"id": one, "text": "?"} for one in self.tokenizer(text)["input_ids"]]
                for text in asked["inputs"]
            ],
            "/predict": predict,
        }

    @torch.no_grad()
    def _logits(self, rows: list[list[int]]) -> list[list[float]]:
        return [self.model(torch.tensor([ids])).logits[0].tolist() for ids in rows]

    def _models(self, _: Any) -> Any:
        return {"data": [{"id": self.name, "max_model_len": self.longest}]}

    def _classify(self, asked: Any) -> Any:
        assert asked["use_activation"] is False
        rows = self._logits(asked["input"])
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
