"""What the rollout tests stand on: a small model with room for differences, an engine with weights of its own, and a
server on loopback that speaks vLLM's routes."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import nn

from posttrain.rollout.base import Completion, NamedTensors, Sampling
from posttrain.rollout.checksum import signature
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.rollout.vllm import gloo_group
from posttrain.rollout.vllm.packing import sizes_of, unpack
from posttrain.trainers.models.load import character_tokenizer, scratch_llama

EOS = 1
PROMPTS = [[10 + (7 * i + j) % 80 for j in range(3 + i % 3)] for i in range(4)]


def small_model(seed: int = 0, scale: float = 8.0, tied: bool = False) -> nn.Module:
    """Two layers, 64 hidden, heads of 32 (what vLLM has on a CPU); weights large enough to prefer some tokens."""
    model = scratch_llama(
        character_tokenizer(), hidden_size=64, layers=2, heads=2, max_positions=256, seed=seed
    )
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model.eval()


@torch.no_grad()
def nudge(model: nn.Module, seed: int, size: float = 0.02) -> None:
    """An update as training would make it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


@torch.no_grad()
def logprobs_of(model: nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """log p of each completion token by one plain forward."""
    ids = torch.tensor([prompt + completion])
    scored = model(ids).logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
    return scored.gather(1, ids[0, len(prompt) :, None])[:, 0]


class CopyEngine:
    """Generates with a copy of the model, so that what was not sent is not there; may be called from a thread."""

    name = "vllm_server"
    shared = True
    shares_weights = False
    looks_ahead = True
    replicas = 1
    dtype = "float32"

    def __init__(self, model: nn.Module, pad_token_id: int = 0) -> None:
        self.model = copy.deepcopy(model)
        vars(self.model).pop("forward", None)  # TRL's fused head would still run the first model's layers
        self._inner = TransformersEngine.of(self.model, pad_token_id=pad_token_id)
        self.version: int | None = None
        self.before_generate: Callable[[], None] = lambda: None
        self.skip: set[str] = set()
        self.calls: list[tuple[int | None, int]] = []
        self._received: dict[str, tuple[str, int]] = {}

    def generate(self, prompts: list[list[int]], sampling: Any) -> list[Completion]:
        self.before_generate()
        self.calls.append((self.version, len(prompts)))
        self._inner.version = self.version
        return self._inner.generate(prompts, sampling)

    @torch.no_grad()
    def update_weights(self, named_tensors: NamedTensors, version: int) -> None:
        own = dict(self.model.named_parameters())
        for name, tensor in named_tensors:
            if name not in self.skip:
                own[name].copy_(tensor)
                self._received[name] = signature(tensor)
        self.version = version

    def weight_checksums(self) -> dict[str, tuple[str, int]]:
        return self._received

    def health(self) -> None: ...

    def close(self) -> None: ...


Answer = tuple[int, bytes]


@contextmanager
def http_server(answer: Callable[[str, str, Any, Any], Answer]) -> Iterator[str]:
    """The URL of a server whose `answer(method, path, body, headers)` gives (status, bytes)."""

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length)
            status, data = answer(self.command, self.path, json.loads(text) if text else None, self.headers)
            with suppress(ConnectionError):  # whoever asked has stopped waiting
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _respond

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def behind(middleware: Callable[..., Any], answer: Callable[[str, str, Any, Any], Answer]) -> Any:
    """`answer` behind an ASGI middleware, for `http_server`."""

    def through(method: str, path: str, body: Any, headers: Any) -> Answer:
        sent: list[Any] = []

        async def application(scope: Any, receive: Any, send: Any) -> None:
            status, data = answer(method, path, body, headers)
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": data})

        async def receive() -> Any:
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        inner.append(application)
        named = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path.split("?")[0], "headers": named}
        asyncio.run(guard(scope, receive, send))
        return sent[0]["status"], sent[1]["body"]

    inner: list[Any] = []

    async def latest(scope: Any, receive: Any, send: Any) -> None:
        await inner[-1](scope, receive, send)

    guard = middleware(latest)
    return through


class PretendVLLM:
    """vLLM's routes over a plain model: what a worker would do with weights it does here."""

    def __init__(self, model: nn.Module, api_key: str = "key", rank: int | None = None) -> None:
        self.model = copy.deepcopy(model)
        self.engine = TransformersEngine.of(self.model, pad_token_id=0)
        self.api_key = api_key
        self.version = "default"
        self.info: dict[str, Any] = {
            "dtype": "torch.float32",
            "logprobs_mode": "processed_logprobs",
            "max_model_len": 256,
        }
        self.requests: list[dict[str, Any]] = []
        self.received: dict[str, tuple[str, int]] = {}
        self._group: Any = None
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, body: Any, headers: Any) -> Answer:
        if path != "/health" and headers.get("Authorization") != f"Bearer {self.api_key}":
            return 401, b"{}"
        route = path.split("?")[0].strip("/").replace("/", "_")
        found = {name: handler for name, handler in vars(PretendVLLM).items() if name == route}
        if not found:
            return 404, b"{}"
        return 200, json.dumps(found[route](self, body)).encode()

    def health(self, body: Any) -> Any:
        return {}

    def v1_models(self, body: Any) -> Any:
        return {"data": [{"id": "small"}]}

    def server_info(self, body: Any) -> Any:
        return {"vllm_config": {"model_config": self.info}}

    def get_world_size(self, body: Any) -> Any:
        return {"world_size": 1}

    def weight_info(self, body: Any) -> Any:
        return {"weight_version": self.version}

    def update_weight_version(self, body: Any) -> Any:
        self.version = body["new_version"]

    def reset_prefix_cache(self, body: Any) -> Any:
        return {"success": True}

    def init_weight_transfer_engine(self, body: Any) -> Any:
        one = body["init_info"]
        self._group = gloo_group.join(
            one["master_address"], one["master_port"], one["rank_offset"], one["world_size"], one["timeout_s"]
        )

    def start_weight_update(self, body: Any) -> Any:
        self.received = {}

    def update_weights(self, body: Any) -> Any:
        update = body["update_info"]
        described = (update["names"], update["dtype_names"], update["shapes"])
        data = torch.empty(sum(sizes_of(*described[1:])), dtype=torch.uint8)
        gloo_group.broadcast(self._group, data)
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in unpack(data, *described):
                own[name].copy_(tensor)
                self.received[name] = signature(tensor)

    def finish_weight_update(self, body: Any) -> Any:
        self.version = body["weight_version"]

    def collective_rpc(self, body: Any) -> Any:
        if body["method"] == "posttrain_weights":
            return {"results": [{name: list(value) for name, value in self.received.items()}]}
        from safetensors.torch import load_file

        own = dict(self.model.named_parameters())
        with torch.no_grad():
            from pathlib import Path

            for file in sorted(Path(body["kwargs"]["weights_path"]).glob("*.safetensors")):
                for name, tensor in load_file(file).items():
                    own[name].copy_(tensor)
                    self.received[name] = signature(tensor)
        return {"results": [None]}

    def v1_completions(self, body: Any) -> Any:
        self.requests.append(body)
        sampling = Sampling(
            temperature=body["temperature"],
            max_new_tokens=body["max_tokens"],
            stop_token_ids=tuple(body["stop_token_ids"]),
            seed=body.get("seed"),
            n=body["n"],
        )
        with self._lock:
            completions = self.engine.generate([body["prompt"]], sampling)
        return {
            "choices": [
                {
                    "index": i,
                    "token_ids": one.token_ids,
                    "logprobs": {"token_logprobs": one.logprobs},
                    "finish_reason": one.finish,
                }
                for i, one in enumerate(completions)
            ]
        }
