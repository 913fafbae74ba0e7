"""What the servers that run reward models want to be asked, and how they answer. One class a kind of server.

    vLLM      POST /classify   tokens; no activation                  {"data": [{"index", "probs": [x]}]}
    SGLang    POST /classify   tokens                                 [{"embedding": [x]}]
    TEI       POST /predict    texts, raw scores, nothing truncated   [[{"score": x, "label"}]]

TEI is text-embeddings-inference. SGLang's /v1/classify and vLLM's /classify without `use_activation: false` give
probabilities, which of a single score are 1 or a sigmoid; /rerank and /score are of pairs of texts. None of them is a
reward, and none is asked.
"""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

from posttrain.rewards.model_reward import ModelReward
from posttrain.rollout.base import EngineRefused
from posttrain.rollout.vllm.client import Failure, Role, Server
from posttrain.rollout.vllm.served_model import difference, field, served_model, tokenizer_fault

_PROBE_SECONDS = 10.0
_NOT_THERE = (404, 405)


def _role(kind: str, start: str, lacking: str) -> Role:
    keys = ("rewards.api_key_env", "rewards.timeout_s", "rewards.server")
    return Role("reward server", f"start it with: {start}", *keys, lacking, kind)


class ScoringApi:
    """One kind of server, at `server`, whose tokenizer has to be `tokenizer`. `longest` is the longest text that it
    takes, in tokens, where it says."""

    role: ClassVar[Role]
    longest: int | None = None
    model: str

    def __init__(self, server: Server, spec: ModelReward, tokenizer: Any) -> None:
        self.server, self.tokenizer = server, tokenizer
        self.open(spec)

    def open(self, spec: ModelReward) -> None:
        """Finds the model. Raises EngineRefused where the server runs none that scores."""
        raise NotImplementedError  # whose route it is

    def fault(self) -> str | None:
        """How its tokenizer differs from ours."""
        raise NotImplementedError  # whose routes for texts and tokens these are

    def scores(self, rows: list[list[int]]) -> list[list[float]]:
        """The scores of each row of tokens; ValueError from what reads them counts as a failed try."""
        raise NotImplementedError  # whose question and answer these are


class VLLMScores(ScoringApi):
    role = _role(
        "vLLM",
        "vllm serve MODEL --runner pooling",
        "It is no vLLM server that runs a sequence classifier, no SGLang server and no text-embeddings-inference",
    )

    def open(self, spec: ModelReward) -> None:
        self.model, self.longest = served_model(self.server, spec.model)

    def fault(self) -> str | None:
        return tokenizer_fault(self.server, self.model, self.tokenizer)

    def scores(self, rows: list[list[int]]) -> list[list[float]]:
        body = {"model": self.model, "input": rows, "use_activation": False}

        def read(answer: Any) -> list[list[float]]:
            found = {one["index"]: one["probs"] for one in answer["data"]} if isinstance(answer, dict) else {}
            if sorted(found) != list(range(len(rows))):
                raise ValueError(f"scores of rows {sorted(found)}, and {len(rows)} were asked about")
            return _numbers([found[i] for i in range(len(rows))], len(rows))

        return self.server.post("/classify", body, read=read)


class SGLangScores(ScoringApi):
    role = _role(
        "SGLang",
        "python -m sglang.launch_server --model-path MODEL --is-embedding",
        "It is no SGLang server, or one too old to be asked about its tokenizer",
    )

    def open(self, spec: ModelReward) -> None:
        told = _told(self.server, "/model_info") or _told(self.server, "/get_model_info") or {}
        if told.get("is_generation"):
            raise EngineRefused(
                f"reward server {self.server.url}: it writes text ({told.get('model_path')}), and a reward model "
                f"scores it; {self.role.start}"
            )
        self.model, self.longest = served_model(self.server, spec.model)

    def fault(self) -> str | None:
        def decoded(ids: list[int]) -> str:
            question = {"model": self.model, "tokens": ids, "skip_special_tokens": False}
            return self.server.post("/detokenize", question, read=field("text"))

        def cut(text: str) -> list[int]:
            question = {"model": self.model, "prompt": text, "add_special_tokens": True}
            return self.server.post("/tokenize", question, read=field("tokens"))

        return difference(self.tokenizer, decoded, cut)

    def scores(self, rows: list[list[int]]) -> list[list[float]]:
        def read(answer: Any) -> list[list[float]]:
            if not isinstance(answer, list):
                raise ValueError("no list of scores")
            return _numbers([field("embedding")(one) for one in answer], len(rows))

        return self.server.post("/classify", {"input_ids": rows}, read=read)


class TEIScores(ScoringApi):
    """Takes texts, so a row is sent as the text that falls into the same tokens."""

    role = _role(
        "text-embeddings-inference",
        "text-embeddings-router --model-id MODEL",
        "It is no text-embeddings-inference server, or one too old to be asked about its tokenizer",
    )

    def open(self, spec: ModelReward) -> None:
        told = self.server.get("/info", read=_object)
        self.model = str(told.get("model_id"))
        kinds = told.get("model_type")
        if not isinstance(kinds, dict) or not {"classifier", "reranker"} & kinds.keys():
            raise EngineRefused(
                f"reward server {self.server.url}: {self.model!r} is no sequence classifier ({kinds}); serve one of "
                "one label"
            )
        self.longest = told.get("max_input_length")
        most = told.get("max_client_batch_size")
        if isinstance(most, int) and spec.batch_size > most:
            raise EngineRefused(
                f"reward server {self.server.url}: it takes {most} rows a call, and rewards.batch_size is "
                f"{spec.batch_size}; lower it, or raise --max-client-batch-size"
            )

    def fault(self) -> str | None:
        def decoded(ids: list[int]) -> str:
            question = {"ids": [ids], "skip_special_tokens": False}
            return self.server.post("/decode", question, read=_only)

        def cut(text: str) -> list[int]:
            question = {"inputs": [text], "add_special_tokens": True}
            return self.server.post(
                "/tokenize", question, read=lambda found: [field("id")(one) for one in _only(found)]
            )

        return difference(self.tokenizer, decoded, cut, clean_up_tokenization_spaces=False)

    def scores(self, rows: list[list[int]]) -> list[list[float]]:
        texts = [text_of(self.tokenizer, row) for row in rows]
        body = {"inputs": [[text] for text in texts], "raw_scores": True, "truncate": False}

        def read(answer: Any) -> list[list[float]]:
            if not isinstance(answer, list) or not all(isinstance(one, list) for one in answer):
                raise ValueError("no list of scores")
            return _numbers([[field("score")(label) for label in one] for one in answer], len(rows))

        return self.server.post("/predict", body, read=read)


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """The text that the tokenizer cuts into these tokens, its own first and last ones added.

    EngineRefused where there is none: a chat template that leaves out the first token that the tokenizer puts before
    every text, or a row that has lost its start.
    """
    plain, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    after = len(whole) - start - len(plain)
    inner = ids[start : len(ids) - after]
    text = tokenizer.decode(inner, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if tokenizer(text)["input_ids"] != ids:
        raise EngineRefused(
            "reward server: text-embeddings-inference takes texts, and no text falls into the tokens of "
            f"{text[:80]!r}: its start was cut off (max_length), or the chat template does not begin as the tokenizer "
            "does. A vLLM or SGLang server takes tokens"
        )
    return text


APIS: dict[str, type[ScoringApi]] = {"vllm": VLLMScores, "sglang": SGLangScores, "tei": TEIScores}


def recognised(server: Server) -> type[ScoringApi]:
    """Whose server it is, by what it tells of itself; vLLM's where nothing else fits, whose answers are looked at."""
    told = _told(server, "/info")
    if told is not None and "model_type" in told and "model_id" in told:
        return TEIScores
    for path in ("/model_info", "/get_model_info"):
        told = _told(server, path)
        if told is not None and "is_generation" in told:
            return SGLangScores
    return VLLMScores


def _told(server: Server, path: str) -> dict[str, Any] | None:
    """The object that it answers there; None where it has no such page. A wrong key and silence are raised."""
    try:
        status, text = server.exchange("GET", path, None, min(_PROBE_SECONDS, server.timeout_s))
    except Failure:
        status, text = 0, b""
    if status in _NOT_THERE:
        return None
    if status != 200:
        return server.get(path, read=_object)  # tried again, and said
    try:
        return _object(json.loads(text))
    except ValueError:
        return None


def _object(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise ValueError("no object")
    return answer


def _only(answer: Any) -> Any:
    if not isinstance(answer, list) or len(answer) != 1:
        raise ValueError("no list of one answer")
    return answer[0]


def _numbers(rows: list[Any], count: int) -> list[list[float]]:
    """Each row a list of finite numbers. ValueError for anything else."""
    if len(rows) != count:
        raise ValueError(f"scores of {len(rows)} rows, and {count} were asked about")
    for row in rows:
        if not isinstance(row, list) or not all(
            isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in row
        ):
            raise ValueError(f"a score is no finite number: {row!r}")
    return rows
