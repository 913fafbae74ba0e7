"""Several servers: one that is lost is left out, its prompts go to the others, and it is sent the weights when back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from rollout_fakes import EOS, PROMPTS, PretendVLLM, http_server, nudge, small_model

from posttrain.rollout.base import Completion, EngineLost, Sampling, WeightsLost
from posttrain.rollout.vllm.server import VLLMServer, servers_of
from posttrain.rollout.vllm.transfer import make_transfer

SAMPLING = Sampling(temperature=1.0, max_new_tokens=6, stop_token_ids=(EOS,), seed=5, n=2)
MANY = [[*prompt, i] for i in range(2) for prompt in PROMPTS]


class Moody(PretendVLLM):
    """A server that can be down, or up and of no use: `mood` is what it does, after so many completions.

    slow  right for a single token, and late for more; hangs  late for every one, and never in a group's join
    """

    def __init__(self, model: Any, *, mood: str = "", after: int = 0) -> None:
        super().__init__(model)
        self.mood, self.left, self.asked = mood, after, 0

    def answer(self, method: str, path: str, body: Any, headers: Any) -> tuple[int, bytes]:
        if self.mood and path == "/v1/completions":
            self.left -= 1
            self.asked += 1
        acts = self.mood and self.left < 0
        if acts and self.mood == "down":
            return 502, b"nobody behind the proxy"
        if acts and self.mood == "wrong" and path == "/v1/completions":
            return 200, b"<html>"
        late = path == "/v1/completions" and (self.mood == "hangs" or body["max_tokens"] > 1)
        if acts and self.mood in ("slow", "hangs") and late:
            return 504, b"no answer in time"
        if self.mood == "hangs" and path == "/init_weight_transfer_engine":
            return 504, b"no answer in time"
        if acts and self.mood == "restarts":
            self.mood, self.version = "", "default"
        return super().answer(method, path, body, headers)

    def back(self) -> None:
        """Started anew, from its checkpoint."""
        self.mood, self.version, self.received = "", "default", {}


class Fleet:
    """Servers of one model, and an engine over them."""

    def __init__(self, stack: ExitStack, *servers: Moody, sync: str = "gloo", folder: Any = None) -> None:
        self.servers = servers
        self.urls = [stack.enter_context(http_server(server.answer)) for server in servers]
        options = {"api_key": "key", "timeout_s": 20.0, "retries": 1, "sleep": lambda _: None}
        made = servers_of(self.urls, **options)
        transfer = make_transfer(sync, made, 20.0, folder=folder)  # type: ignore[arg-type]
        self.engine = VLLMServer(made, transfer, dtype="float32")
        stack.callback(self.engine.close)

    def ask(self) -> list[Completion]:
        return self.engine.generate(MANY, SAMPLING)


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [one.token_ids for one in completions]


def test_the_others_answer_in_its_place_with_the_same_samples(stack: ExitStack, capsys) -> None:
    model = small_model()
    whole = tokens(Fleet(stack, Moody(model)).ask())
    fleet = Fleet(stack, Moody(model, mood="down", after=1), Moody(model), Moody(model))
    assert tokens(fleet.ask()) == whole
    assert fleet.engine.replicas == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"rollout server {fleet.urls[0]} is left out: it is down: no usable answer to /v1/compl"
    )
    assert "--resume" not in said
    assert "Its prompts go to the 2 others; it is taken back" in said
    before = len(fleet.servers[0].requests)
    assert tokens(fleet.ask()) == whole
    assert len(fleet.servers[0].requests) == before  # not asked any more
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("sync", ["gloo", "disk"])
def test_it_is_back_at_the_next_sync_with_the_weights_of_then(
    stack: ExitStack, sync: str, tmp_path, capsys
) -> None:
    model = small_model()
    fleet = Fleet(stack, Moody(model), Moody(model, mood="down", after=1), sync=sync, folder=tmp_path)
    fleet.engine.update_weights(model.named_parameters(), 0)
    fleet.ask()
    nudge(model, 1)
    fleet.engine.update_weights(model.named_parameters(), 1)
    assert fleet.engine.replicas == 1
    fleet.servers[1].back()
    nudge(model, 2)
    fleet.engine.update_weights(model.named_parameters(), 2)
    assert fleet.engine.replicas == 2
    assert capsys.readouterr().err.endswith(f"{fleet.urls[1]} is back; it is sent the current weights\n")
    for server in fleet.servers:
        assert server.version == fleet.servers[0].version
        for (name, sent), held in zip(model.named_parameters(), server.model.parameters(), strict=True):
            assert torch.equal(sent, held), name
    before = len(fleet.servers[1].requests)
    fleet.ask()
    assert len(fleet.servers[1].requests) > before


def test_with_none_left_it_ends(stack: ExitStack) -> None:
    fleet = Fleet(stack, *(Moody(small_model(), mood="down", after=1) for _ in range(2)))
    with pytest.raises(EngineLost, match=r"--resume\. No other server is left \(http.*: down\)"):
        fleet.ask()


def test_one_that_is_up_and_slow_is_said_to_be_so_and_stays_away_longer_each_time(
    stack: ExitStack, capsys
) -> None:
    model = small_model()
    fleet = Fleet(stack, Moody(model), Moody(model, mood="slow"))
    fleet.ask()
    assert "it is up, but gives no usable answers: " in capsys.readouterr().err
    away = []
    for version in range(8):
        fleet.engine.update_weights(model.named_parameters(), version)
        away.append(fleet.engine.replicas == 1)
        fleet.ask()
    # back at once; then a sync without it, then three, which the eighth is the last of
    assert away == [False, True, False, True, True, True, False, True]


def test_one_that_is_up_and_wrong_is_not_taken_back_and_asked_less_and_less(stack: ExitStack, capsys) -> None:
    model = small_model()
    fleet = Fleet(stack, Moody(model), Moody(model, mood="wrong"))
    fleet.ask()
    asked = []
    for version in range(8):
        before = fleet.servers[1].asked
        fleet.engine.update_weights(model.named_parameters(), version)
        asked.append(fleet.servers[1].asked > before)
        assert fleet.engine.replicas == 1
    assert asked == [True, False, True, False, False, False, True, False]
    assert capsys.readouterr().err.count("is not taken back: ") == 1
    fleet.servers[1].mood = ""
    for version in range(8, 16):
        fleet.engine.update_weights(model.named_parameters(), version)
    assert fleet.engine.replicas == 2


def test_one_that_hangs_is_found_by_the_sync_that_it_breaks(stack: ExitStack, capsys) -> None:
    """It says that it is well; a transfer waits for it, and what the trainer asks then is a token."""
    model = small_model()
    fleet = Fleet(stack, Moody(model), Moody(model, mood="hangs"))
    with pytest.raises(EngineLost):
        fleet.engine.update_weights(model.named_parameters(), 0)
    fleet.engine.health()
    assert fleet.engine.replicas == 1
    assert "it is up, but gives no usable answers: " in capsys.readouterr().err
    fleet.engine.update_weights(model.named_parameters(), 0)
    assert fleet.servers[0].version.endswith(":0")
    fleet.servers[1].mood = ""
    for version in (1, 2):  # the first look at it, by the second sync, found it hanging still
        fleet.engine.update_weights(model.named_parameters(), version)
    assert fleet.engine.replicas == 2


def test_one_that_was_restarted_holds_other_weights_and_is_not_believed(stack: ExitStack, capsys) -> None:
    model = small_model()
    fleet = Fleet(stack, Moody(model), Moody(model))
    nudge(model, 3)
    fleet.engine.update_weights(model.named_parameters(), 0)
    whole = tokens(fleet.ask())
    fleet.servers[1].mood = "restarts"
    assert tokens(fleet.ask()) == whole
    assert "not" in capsys.readouterr().err
    assert fleet.engine.replicas == 1
    fleet.engine.update_weights(model.named_parameters(), 1)
    assert fleet.engine.replicas == 2

    alone = Fleet(stack, Moody(model))
    alone.engine.update_weights(model.named_parameters(), 0)
    alone.servers[0].mood = "restarts"
    with pytest.raises(WeightsLost, match="it was restarted"):
        alone.ask()


def test_one_that_comes_back_as_another_is_not_taken(stack: ExitStack, capsys) -> None:
    model = small_model()
    fleet = Fleet(stack, Moody(model), Moody(model, mood="down"))
    fleet.ask()
    fleet.servers[1].back()
    fleet.servers[1].info = {**fleet.servers[1].info, "dtype": "torch.bfloat16"}
    capsys.readouterr()
    for version in range(2):
        fleet.engine.update_weights(model.named_parameters(), version)
    said = capsys.readouterr().err
    assert said.count("is not taken back: ") == 1
    assert "computes in bfloat16" in said
    assert fleet.engine.replicas == 1


def test_a_transfer_that_breaks_leaves_out_who_broke_it(stack: ExitStack) -> None:
    """What the trainer does between two tries: it asks all for their health."""
    model = small_model()
    fleet = Fleet(stack, Moody(model), Moody(model))
    fleet.engine.update_weights(model.named_parameters(), 0)
    fleet.servers[1].mood, fleet.servers[1].left = "down", -1
    with pytest.raises(EngineLost):
        fleet.engine.update_weights(model.named_parameters(), 1)
    fleet.engine.health()
    assert fleet.engine.replicas == 1
    fleet.engine.update_weights(model.named_parameters(), 1)
    assert fleet.servers[0].version.endswith(":1")
