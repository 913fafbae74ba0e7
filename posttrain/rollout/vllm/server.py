"""Generation by vLLM servers, on this machine or others: prompts go out over HTTP, weights by a transfer.

The servers are started by launch/serve_vllm.sh. A lease keeps other trainers from one that is in use (lease.py). Each
carries a weight version that only this engine writes, so one that was restarted, or changed by something that asks for
no lease, is noticed before its samples are used. Of several servers a lost one is left out until it is back
(roster.py); a sample's seed is its row's, so who answers changes nothing.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from posttrain.process.phases import PHASES
from posttrain.rollout.arrivals import counting
from posttrain.rollout.base import (
    Completion,
    EngineError,
    EngineLost,
    EngineRefused,
    NamedTensors,
    Sampling,
    WeightsLost,
    rows,
)
from posttrain.rollout.vllm.client import START, Server
from posttrain.rollout.vllm.lease import Lease
from posttrain.rollout.vllm.roster import Roster
from posttrain.rollout.vllm.spreading import Request, merge_rows, spread
from posttrain.rollout.vllm.transfer import Transfer

_CONCURRENT_REQUESTS = 64  # a server; it batches them itself
_HEALTH_S = 30.0  # for a server that has just failed to come back: with the default retries, all of them
_PROBE = Request(0, [0], Sampling(max_new_tokens=1))
"""One token after one: what a server must be able to write that only says it is well."""


class VLLMServer:
    """One or more vLLM servers as one engine.

    dtype             what the trainer computes in; a server that computes in another is refused
    max_length        longest prompt plus completion the run may ask for; None: not checked
    start_timeout_s   how long to wait for a server that is still starting
    run_id            tells this run's weights from another's of the same version; all ranks of a run share it
    """

    name = "vllm_server"
    shared = True
    shares_weights = False
    looks_ahead = True

    def __init__(
        self,
        servers: Sequence[Server],
        transfer: Transfer,
        *,
        dtype: str,
        max_length: int | None = None,
        start_timeout_s: float = 240.0,
        run_id: str | None = None,
    ) -> None:
        if not servers:
            raise ValueError(
                "rollout.vllm.servers is empty: name at least one, for example http://127.0.0.1:8000"
            )
        self._run = run_id if run_id is not None else secrets.token_hex(4)
        self.servers = [replace(server, run=self._run) for server in servers]
        self._roster = Roster(self.servers)
        self._lease = Lease(self.servers)
        transfer.servers = self.servers  # which name the run too
        self.dtype = dtype
        self.version: int | None = None
        self._transfer = transfer
        self._max_length = max_length
        self._start_timeout_s = start_timeout_s
        self._models: dict[str, str] = {}

    @property
    def replicas(self) -> int:
        """Servers that take part now; each holds the weights."""
        return len(self._roster.active)

    # Starting

    def connect(self) -> None:
        """Waits for the servers, takes them for this run, and checks that they are what it needs. Raises EngineLost,
        EngineRefused."""
        for server in self.servers:
            server.wait_until_up(self._start_timeout_s)
        self._lease.take()
        for server in self.servers:
            self._ask_what_it_is(server)

    def _ask_what_it_is(self, server: Server) -> None:
        models = server.call("GET", "/v1/models")
        try:
            self._models[server.url] = models["data"][0]["id"]
            model = server.get("/server_info?config_format=json")["vllm_config"]["model_config"]
            self._check(server, model)
        except (KeyError, IndexError, TypeError) as error:
            raise EngineLost(
                f"rollout server {server.url}: its answer is not that of a vLLM server (missing {error}). Check "
                f"rollout.vllm.servers, {START}."
            ) from error

    def _check(self, server: Server, model: Mapping[str, Any]) -> None:
        dtype = str(model["dtype"]).removeprefix("torch.")
        if dtype != self.dtype:
            raise EngineRefused(
                f"rollout server {server.url} computes in {dtype}, the trainer in {self.dtype}: their log-probs would "
                f"differ. Restart it with DTYPE={self.dtype}, or set rollout.vllm.dtype: {dtype} to accept it."
            )
        if "processed" not in str(model["logprobs_mode"]):
            raise EngineRefused(
                f"rollout server {server.url} gives log-probs before temperature (logprobs mode "
                f"{model['logprobs_mode']}): restart it with --logprobs-mode processed_logprobs; launch/serve_vllm.sh "
                "does."
            )
        if self._max_length is not None and model["max_model_len"] < self._max_length:
            raise EngineRefused(
                f"rollout server {server.url} holds {model['max_model_len']} tokens a sequence, the run asks for up "
                f"to {self._max_length}: restart it with --max-model-len {self._max_length}."
            )

    def health(self) -> None:
        """Asks each server with the retries of any other call, so a restart within them goes unnoticed; one that does
        not answer is left out. Of several each must also write a token: what takes requests lives on where what
        computes hangs. EngineLost where none is left."""
        asked = self._roster.active

        def ask(server: Server) -> EngineError | None:
            try:
                server.get("/health", timeout_s=min(server.timeout_s, _HEALTH_S))
                if len(asked) > 1:
                    self._probe(server)
            except EngineError as error:
                return error
            return None

        with ThreadPoolExecutor(max_workers=len(asked)) as pool:
            for server, error in zip(asked, pool.map(ask, asked), strict=True):
                if error is not None:
                    self._leave_out(server, error)

    def _probe(self, server: Server) -> None:
        self._ask(server, _PROBE, timeout_s=min(server.timeout_s, _HEALTH_S), retries=0)

    def _leave_out(self, server: Server, error: EngineError) -> None:
        if self._roster.leave_out(server, error):
            self._transfer.close()  # its group was with that server

    def _take_back(self) -> None:
        def admit(server: Server) -> None:
            self._lease.take_again(server)
            self._ask_what_it_is(server)
            self._probe(server)

        for _ in self._roster.take_back(admit):
            self._transfer.close()  # its group was without that server

    # Generating

    def generate(self, prompts: list[list[int]], sampling: Sampling | Sequence[Sampling]) -> list[Completion]:
        if not self._models:
            self.connect()
        wanted = rows(prompts, sampling)
        requests = merge_rows(wanted)
        done: list[Completion | None] = [None] * len(wanted)
        with (
            PHASES.within("generating", len(wanted)) as phase,
            ThreadPoolExecutor(max_workers=_CONCURRENT_REQUESTS * len(self.servers)) as pool,
        ):
            counted = counting(phase)
            while requests:
                answered = self._round(requests, pool, counted)
                for request, completions in answered:
                    done[request.first : request.first + len(completions)] = completions
                served = {request.first for request, _ in answered}
                requests = [request for request in requests if request.first not in served]
        return [completion for completion in done if completion is not None]

    def _round(
        self,
        requests: Sequence[Request],
        pool: ThreadPoolExecutor,
        counted: Callable[[Sequence[Completion]], Sequence[Completion]],
    ) -> list[tuple[Request, Sequence[Completion]]]:
        """Asks for all requests, spread over the servers that take part; what those answered that are left after it."""
        servers = self._roster.active
        parts = spread(requests, len(servers))
        work = [(server, one) for server, part in zip(servers, parts, strict=True) for one in part]
        failed: list[Exception] = []

        def ask(item: tuple[Server, Request]) -> Sequence[Completion] | None:
            if failed:  # those that waited for their turn are not sent any more
                raise failed[0]
            server, request = item
            if not self._roster.is_active(server):
                return None
            try:
                return counted(self._ask(server, request))
            except EngineLost as error:
                try:
                    self._leave_out(server, error)
                except EngineLost as last:
                    failed.append(last)
                    raise
                return None
            except Exception as error:
                failed.append(error)
                raise

        answers = list(pool.map(ask, work))
        self._check_versions({server.url: server for server, _ in work}.values())
        return [
            (request, completions)
            for (server, request), completions in zip(work, answers, strict=True)
            if completions is not None and self._roster.is_active(server)
        ]

    def _ask(self, server: Server, request: Request, **options: Any) -> list[Completion]:
        body = {
            "model": self._models[server.url],
            "prompt": request.prompt,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **_options(request.sampling),
        }

        def read(answer: Any) -> list[Completion]:
            return read_choices(answer, request.sampling, self.version or 0)

        return server.post("/v1/completions", body, read=read, **options)

    def _check_versions(self, servers: Iterable[Server]) -> None:
        """What was sampled counts only if the server still holds the weights it was given; one that does not is left
        out, and of a run's only one it is raised."""
        if self.version is None:
            return
        for server in servers:
            if not self._roster.is_active(server):
                continue
            try:
                held = server.get("/weight_info")["weight_version"]
                if held != self._stamp(self.version):
                    raise WeightsLost(
                        f"rollout server {server.url} holds weights {held!r}, not {self._stamp(self.version)!r}: "
                        "it was restarted, or another trainer uses it."
                    )
            except (EngineLost, WeightsLost) as error:
                self._leave_out(server, error)

    # Weights

    def _stamp(self, version: int) -> str:
        return f"{self._run}:{version}"

    def update_weights(self, named_tensors: NamedTensors, version: int) -> None:
        if not self._models:
            self.connect()
        self._take_back()
        self._transfer.servers = self._roster.active
        self._transfer.send(named_tensors, self._stamp(version))
        self.version = version

    def weight_checksums(self) -> Mapping[str, tuple[str, int]]:
        """Of the first server whose workers disagree with another's, or of all, as they agree."""
        reports = []
        for server in self._roster.active:
            answer = server.post("/collective_rpc", {"method": "posttrain_weights"})
            reports += [
                {name: (str(dtype), int(value)) for name, (dtype, value) in report.items()}
                for report in answer["results"]
            ]
        first = reports[0]
        return next((report for report in reports if report != first), first)

    def close(self) -> None:
        self._transfer.close()
        self._lease.release()


def _options(sampling: Sampling) -> dict[str, Any]:
    """Sampling in vLLM's words."""
    options = {
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
    }
    return options if sampling.seed is None else {**options, "seed": sampling.seed}


def read_choices(answer: Any, sampling: Sampling, version: int) -> list[Completion]:
    """The n completions in a server's answer, in order. Raises ValueError saying what is wrong with it."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != sampling.n:
        raise ValueError(f"{sampling.n} choices were asked for, it answered {str(answer)[:120]}")
    try:
        ordered = sorted(choices, key=lambda choice: choice["index"])
        return [_completion(choice, sampling, version) for choice in ordered]
    except (KeyError, TypeError) as error:
        raise ValueError(f"a choice without usable {error}") from error


def _completion(choice: Mapping[str, Any], sampling: Sampling, version: int) -> Completion:
    ids = choice["token_ids"]
    logprobs = choice["logprobs"]["token_logprobs"]
    if not ids or len(ids) != len(logprobs) or len(ids) > sampling.max_new_tokens:
        raise ValueError(
            f"{len(ids)} tokens with {len(logprobs)} log-probs, at most {sampling.max_new_tokens} wanted"
        )
    if not all(isinstance(token, int) for token in ids):
        raise ValueError("token ids that are no integers")
    if any(value is None or not math.isfinite(value) or value > 1e-3 for value in logprobs):
        bad = next(v for v in logprobs if v is None or not math.isfinite(v) or v > 1e-3)
        raise ValueError(
            f"log-prob {bad} of a sampled token: the model's logits are broken, NaN in the weights?"
        )
    finish = "stop" if choice["finish_reason"] == "stop" else "length"
    return Completion(list(ids), [float(v) for v in logprobs], finish, ((version, len(ids)),))


def servers_of(urls: Sequence[str], **options: Any) -> list[Server]:
    """One Server a URL, all with the same options. Raises ValueError on a URL that is listed twice."""
    servers = [Server(url.rstrip("/"), **options) for url in urls]
    doubled = sorted({s.url for s in servers if sum(t.url == s.url for t in servers) > 1})
    if doubled:
        raise ValueError(f"rollout.vllm.servers lists {doubled[0]} twice")
    return servers
