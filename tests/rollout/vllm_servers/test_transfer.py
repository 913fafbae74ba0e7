"""Weights as bytes: packed, broadcast to the workers of several servers, or through files."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import ExitStack

import pytest
import torch
from rollout_fakes import EOS, PROMPTS, PretendVLLM, http_server, logprobs_of, nudge, small_model

from posttrain.process.roll import own_address_towards
from posttrain.rollout.base import EngineLost, EngineRefused, Sampling, WeightsLost
from posttrain.rollout.vllm import gloo_group
from posttrain.rollout.vllm.packing import pack, unpack
from posttrain.rollout.vllm.server import VLLMServer, read_choices, servers_of
from posttrain.rollout.vllm.transfer import at_once, make_transfer, route_to, write_weights

TENSORS = [
    ("a", torch.arange(6, dtype=torch.bfloat16).view(2, 3)),
    ("b", torch.randn(5)),
    ("c", torch.tensor(3.0, dtype=torch.float64)),
    ("d", torch.ones(2, 2).t()),
]


@pytest.mark.parametrize("limit", [1, 20, 1 << 20])
def test_packed_tensors_come_out_as_they_went_in(limit: int) -> None:
    chunks = list(pack(iter(TENSORS), torch.device("cpu"), limit))
    found = [item for chunk in chunks for item in unpack(chunk.data, **_described(chunk))]
    assert [name for name, _ in found] == [name for name, _ in TENSORS]
    for (_, a), (_, b) in zip(found, TENSORS, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    # a chunk ends with the tensor that takes it past the limit: vLLM's receiver counts the same way
    assert [len(chunk.names) for chunk in chunks] == {1: [1, 1, 1, 1], 20: [2, 2], 1 << 20: [4]}[limit]


def _described(chunk) -> dict:
    described = chunk.describe()
    return {
        "names": described["names"],
        "dtype_names": described["dtype_names"],
        "shapes": described["shapes"],
    }


def test_a_packed_tensor_is_a_copy() -> None:
    tensor = torch.zeros(4)
    (chunk,) = pack([("x", tensor)], torch.device("cpu"))
    tensor += 1
    assert unpack(chunk.data, **_described(chunk))[0][1].sum() == 0


@pytest.mark.parametrize("interface", ["", "lo"])
def test_a_group_of_three_on_loopback(interface: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own default device leaves the variable unread, and takes what this host's name resolves to."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", interface)
    listener = gloo_group.listen("127.0.0.1")
    port = listener.getsockname()[1]
    received = {}

    def worker(rank: int) -> None:
        group = gloo_group.join("127.0.0.1", port, rank, 3, 20)
        received[rank] = torch.zeros(3)
        gloo_group.broadcast(group, received[rank])

    def trainer() -> None:
        group = gloo_group.join("127.0.0.1", port, 0, 3, 20, listener)
        gloo_group.broadcast(group, torch.tensor([1.0, 2.0, 3.0]))

    at_once([trainer, lambda: worker(1), lambda: worker(2)], 30, "meeting")
    assert all(torch.equal(value, torch.tensor([1.0, 2.0, 3.0])) for value in received.values())


def test_a_peer_that_stays_away_is_not_waited_for_beyond_the_limit() -> None:
    listener = gloo_group.listen("127.0.0.1")
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="1 of 2 processes came within 1 s"):
        gloo_group.join("127.0.0.1", listener.getsockname()[1], 0, 2, 1.0, listener)
    assert time.monotonic() - begin < 10


def test_a_meeting_can_be_called_off() -> None:
    listener = gloo_group.listen("127.0.0.1")
    called_off = threading.Event()
    threading.Timer(0.2, called_off.set).start()
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="called off"):
        gloo_group.join("127.0.0.1", listener.getsockname()[1], 0, 2, 60.0, listener, called_off)
    assert time.monotonic() - begin < 10


def test_the_first_error_is_raised_while_others_still_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    with pytest.raises(EngineLost, match="gone"):
        at_once([lambda: stuck.wait(30), lambda: (_ for _ in ()).throw(EngineLost("gone"))], 30, "sending")
    waits: list[float] = []

    class Watched(queue.Queue):
        def get(self, block: bool = True, timeout: float | None = None):
            waits.append(timeout)
            return super().get(block, timeout)

    monkeypatch.setattr("posttrain.rollout.vllm.transfer.queue.Queue", Watched)
    with pytest.raises(EngineLost, match="sending took longer than 1 s"):
        at_once([lambda: time.sleep(0.5), lambda: stuck.wait(30)], 1.0, "sending")
    assert waits[1] < 0.9  # the limit is of all tasks together
    stuck.set()


def test_weight_files_appear_whole(tmp_path) -> None:
    from safetensors.torch import load_file

    path = write_weights(tmp_path, "v1", iter(TENSORS), limit_bytes=20)
    assert sorted(file.name for file in path.iterdir()) == [
        "model-00000.safetensors",
        "model-00001.safetensors",
    ]
    found = {name: tensor for file in path.iterdir() for name, tensor in load_file(file).items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v1"]


def servers_at(urls: list[str], **options) -> list:
    return servers_of(
        urls, **{"api_key": "key", "timeout_s": 20.0, "retries": 1, "retry_delay_s": 0.01, **options}
    )


def engine_at(urls: list[str], sync: str, folder, **options) -> VLLMServer:
    servers = servers_at(urls)
    return VLLMServer(
        servers, make_transfer(sync, servers, 20.0, folder=str(folder)), dtype="float32", **options
    )


def test_a_server_that_hangs_holds_a_rollout_no_longer_than_one_call(tmp_path) -> None:
    """More requests than are sent at once: those that waited are not sent to it any more."""
    pretended = PretendVLLM(small_model())
    stuck = threading.Event()
    asked: list[str] = []

    def answer(method, path, body, headers):
        if path == "/v1/completions":
            asked.append(path)
            stuck.wait(20)
        return pretended.answer(method, path, body, headers)

    with http_server(answer) as url:
        servers = servers_at([url], timeout_s=1.0, retries=3)
        engine = VLLMServer(
            servers, make_transfer("disk", servers, 5.0, folder=str(tmp_path)), dtype="float32"
        )
        engine.connect()
        with pytest.raises(EngineLost, match=f"{url}.*timed out.*rollout.vllm.timeout_s"):
            engine.generate([[5 + i] for i in range(150)], Sampling(max_new_tokens=2))
        stuck.set()
    assert 0 < len(asked) <= 64  # no second wave


@pytest.mark.parametrize("sync", ["gloo", "disk"])
def test_two_servers_generate_with_the_weights_they_are_sent(sync: str, tmp_path) -> None:
    model = small_model()
    pretended = [PretendVLLM(model), PretendVLLM(model)]
    with ExitStack() as stack:
        urls = [stack.enter_context(http_server(one.answer)) for one in pretended]
        engine = engine_at(urls, sync, tmp_path, max_length=200)
        sampling = Sampling(max_new_tokens=6, n=2, seed=3, stop_token_ids=(EOS,))
        for version in (1, 2):
            nudge(model, version)
            engine.update_weights(model.named_parameters(), version)
            found = engine.generate(PROMPTS, sampling)
            assert [one.versions[0] for one in found] == [version] * 8
            for i, one in enumerate(found):
                want = logprobs_of(model, PROMPTS[i // 2], one.token_ids)
                torch.testing.assert_close(torch.tensor(one.logprobs), want, atol=1e-4, rtol=0)
        from posttrain.rollout.proof import first_difference

        assert first_difference(model.named_parameters(), engine.weight_checksums()) == (None, 21)
        pretended[1].received.pop("lm_head.weight")
        found, _ = first_difference(model.named_parameters(), engine.weight_checksums())
        assert found == "lm_head.weight (never received by the engine)"
        engine.close()
    assert {len(one.requests) for one in pretended} == {4}  # two prompts each, twice
    assert pretended[0].requests[0]["n"] == 2


def test_completions_do_not_depend_on_how_many_servers_there_are(tmp_path) -> None:
    model = small_model()
    sampling = Sampling(max_new_tokens=6, n=2, seed=3)
    found = []
    for count in (1, 3):
        with ExitStack() as stack:
            urls = [stack.enter_context(http_server(PretendVLLM(model).answer)) for _ in range(count)]
            found.append(engine_at(urls, "disk", tmp_path).generate(PROMPTS, sampling))
    assert [one.token_ids for one in found[0]] == [one.token_ids for one in found[1]]


def test_a_restarted_server_is_noticed_and_mended_by_a_sync(tmp_path) -> None:
    model = small_model()
    pretended = PretendVLLM(model)
    with http_server(pretended.answer) as url:
        engine = engine_at([url], "gloo", tmp_path)
        engine.update_weights(model.named_parameters(), 1)
        pretended.version = "default"
        with pytest.raises(WeightsLost, match="'default'.*restarted, or another trainer uses it"):
            engine.generate(PROMPTS[:1], Sampling(max_new_tokens=2))
        engine.update_weights(model.named_parameters(), 1)
        engine.generate(PROMPTS[:1], Sampling(max_new_tokens=2))


def test_a_server_that_dies_in_a_transfer_is_an_engine_lost(tmp_path) -> None:
    model = small_model()
    pretended = PretendVLLM(model)
    with http_server(pretended.answer) as url:
        engine = engine_at([url], "gloo", tmp_path)
        engine.update_weights(model.named_parameters(), 1)
    with pytest.raises(EngineLost, match=f"{url}.*Is it running"):
        engine.update_weights(model.named_parameters(), 2)
    assert engine.version == 1


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"dtype": "torch.bfloat16"}, "computes in bfloat16, the trainer in float32.*DTYPE=float32"),
        ({"logprobs_mode": "raw_logprobs"}, "--logprobs-mode processed_logprobs"),
        ({"max_model_len": 100}, "holds 100 tokens a sequence.*--max-model-len 200"),
    ],
)
def test_a_server_that_does_not_fit_is_refused(info: dict, message: str, tmp_path) -> None:
    pretended = PretendVLLM(small_model())
    pretended.info |= info
    with http_server(pretended.answer) as url, pytest.raises(EngineRefused, match=message):
        engine_at([url], "disk", tmp_path, max_length=200).connect()


def test_something_else_at_the_address(tmp_path) -> None:
    with (
        http_server(lambda *_: (200, b'{"status": "ok"}')) as url,
        pytest.raises(EngineLost, match="not that of a vLLM"),
    ):
        engine_at([url], "disk", tmp_path).connect()
    locked = PretendVLLM(small_model(), api_key="other")
    with http_server(locked.answer) as url, pytest.raises(EngineRefused, match="wrong API key"):
        engine_at([url], "disk", tmp_path).connect()


ANSWER = {
    "index": 0,
    "token_ids": [5, 6],
    "logprobs": {"token_logprobs": [-1.0, -2.0]},
    "finish_reason": "stop",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": []}, "0 tokens"),
        ({"token_ids": [5]}, "1 tokens with 2 log-probs"),
        ({"token_ids": [5, "6"]}, "no integers"),
        ({"logprobs": {"token_logprobs": [-1.0, None]}}, "log-prob None"),
        ({"logprobs": {"token_logprobs": [-1.0, float("nan")]}}, "NaN in the weights"),
        ({"logprobs": {"token_logprobs": [-1.0, 0.5]}}, "log-prob 0.5"),
        ({"logprobs": None}, "without usable"),
    ],
)
def test_garbage_in_an_answer(change: dict, message: str) -> None:
    sampling = Sampling(max_new_tokens=2)
    assert read_choices({"choices": [ANSWER]}, sampling, 3)[0].segments == ((3, 2),)
    with pytest.raises(ValueError, match=message):
        read_choices({"choices": [{**ANSWER, **change}]}, sampling, 3)
    with pytest.raises(ValueError, match="1 choices were asked for"):
        read_choices({"error": "x"}, sampling, 3)


def test_addresses() -> None:
    with pytest.raises(ValueError, match="lists http://a:1 twice"):
        servers_of(["http://a:1", "http://b:1", "http://a:1/"])
    with pytest.raises(ValueError, match="servers is empty"):
        VLLMServer([], make_transfer("gloo", [], 1.0), dtype="float32")
    with pytest.raises(ValueError, match="sync: disk needs sync_dir"):
        make_transfer("disk", [], 1.0)
    assert route_to(servers_of(["http://localhost:1"])[0]) == "127.0.0.1"


def test_traffic_leaves_by_the_route_and_not_by_what_the_hosts_name_resolves_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []
    monkeypatch.setattr(gloo_group, "own_address_towards", lambda host, port=9: f"towards {host}")
    monkeypatch.setattr(
        gloo_group.dist.ProcessGroupGloo, "create_device", lambda **what: taken.append(what), raising=False
    )
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    gloo_group._device("trainer-01")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1,eth2")  # the user knows better
    gloo_group._device("trainer-01")
    assert taken == [{"hostname": "towards trainer-01"}, {"interface": "eth1"}]


def test_this_machines_address_on_a_route() -> None:
    assert own_address_towards("127.0.0.5") == "127.0.0.1"
    with pytest.raises(OSError, match="not known|No address|Temporary failure"):
        own_address_towards("no-such-host.invalid")


def test_an_address_of_another_machine_is_refused_as_meeting_place(tmp_path) -> None:
    with http_server(PretendVLLM(small_model()).answer) as url:
        servers = servers_at([url])
        transfer = make_transfer("gloo", servers, 5.0, host="203.0.113.7")  # reserved for documentation
        with pytest.raises(EngineRefused, match="sync_host 203.0.113.7: this machine cannot listen there"):
            transfer.send(small_model().named_parameters(), "1")


def test_a_server_that_cannot_reach_the_trainer_is_told_from_a_dead_one(tmp_path) -> None:
    pretended = PretendVLLM(small_model())

    def answer(method, path, body, headers):
        if path == "/init_weight_transfer_engine":
            return 500, b"timed out connecting to 10.0.0.1"
        return pretended.answer(method, path, body, headers)

    with http_server(answer) as url:
        transfer = make_transfer("gloo", servers_at([url]), 5.0)
        with pytest.raises(
            EngineLost, match=r"timed out connecting.*meet the trainer at 127.0.0.1:\d+.*sync_host"
        ):
            transfer.send(small_model().named_parameters(), "1")
