"""The tables a plan reads: what each engine honours, and what does not go together."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from posttrain.recipe.sections import RolloutSection, VLLMSection
from posttrain.rollout import engine_options
from posttrain.rollout.base import Completion, Sampling, rows, stable_seed


def test_the_names_are_those_of_sampling() -> None:
    assert {field.name for field in dataclasses.fields(Sampling)} == engine_options.SAMPLING_OPTIONS
    assert engine_options.TRUNCATING <= engine_options.SAMPLING_OPTIONS


def test_every_vllm_key_is_read_by_some_engine() -> None:
    read = frozenset().union(*(one.settings for one in engine_options.ENGINES.values()))
    assert read == set(VLLMSection.model_fields)


def test_every_engine_of_a_recipe_is_in_the_table() -> None:
    engines = RolloutSection.model_fields["engine"].annotation.__args__  # type: ignore[union-attr]  # a Literal
    assert set(engines) <= set(engine_options.ENGINES)


def test_what_an_engine_lacks_is_named() -> None:
    assert engine_options.refused_options("masked_diffusion", {"top_p", "temperature"}) == ["top_p"]
    assert engine_options.refused_options("vllm", engine_options.SAMPLING_OPTIONS) == []
    assert engine_options.refused_settings("vllm_server", {"sleep", "servers"}) == ["sleep"]
    assert engine_options.refused_settings("vllm", {"sleep", "servers"}) == ["servers"]


AHEAD = {"staleness": 0, "partial_budget": None, "max_new_tokens": 8}


@pytest.mark.parametrize(
    ("engine", "changes", "problem"),
    [
        ("vllm_server", {}, None),
        ("vllm_server", {"staleness": 3}, None),
        ("vllm", {"staleness": 1}, "needs an engine in a process of its own: set engine to vllm_server"),
        ("transformers", {"staleness": 1}, "needs an engine in a process of its own"),
        ("vllm_server", {"staleness": -1}, "cannot be -1"),
        ("vllm", {"partial_budget": 7}, None),
        ("vllm", {"partial_budget": 8}, "between 1 and max_new_tokens - 1"),
        ("vllm", {"correction": "token_mask"}, None),
        ("vllm", {"correction": "mask"}, "is none of token_truncate"),
        ("vllm", {"truncating": {"top_p"}}, None),
        (
            "vllm",
            {"truncating": {"top_p"}, "partial_budget": 4},
            "top_p make the sampled distribution another",
        ),
        (
            "vllm_server",
            {"truncating": {"min_p"}, "staleness": 1},
            "min_p make the sampled distribution another",
        ),
    ],
)
def test_what_does_not_go_together(engine: str, changes: dict, problem: str | None) -> None:
    found = engine_options.check_ahead(engine, **{**AHEAD, **changes})
    assert (not found) if problem is None else any(problem in one for one in found), found


@pytest.mark.parametrize(
    ("urls", "changes", "problem"),
    [
        (["http://a:1", "https://b"], {}, None),
        (["http://a:1"], {"sync": "disk", "sync_dir": "/shared"}, None),
        (["http://a:1"], {"sync": "gloo", "sync_host": "10.0.0.1", "use_cpu": True}, None),
        (["a:1"], {}, "server 'a:1': write it as http://host:port"),
        ([], {}, "'servers' is empty"),
        (["http://a:1", "http://a:1/"], {}, "lists http://a:1 twice"),
        (["http://a:1"], {"sync": "nccl", "use_cpu": True}, "nccl needs a GPU"),
        (["http://a:1"], {"sync_dir": "/shared"}, "'sync_dir' does nothing without sync: disk"),
        (
            ["http://a:1"],
            {"sync": "disk", "sync_host": "10.0.0.1"},
            "'sync_host' does nothing with sync: disk",
        ),
    ],
)
def test_servers_and_the_way_to_them(urls: list[str], changes: dict, problem: str | None) -> None:
    found = engine_options.check_servers(urls, **{"sync": None, **changes})
    assert (not found) if problem is None else any(problem in one for one in found), found


def test_the_tables_need_no_torch() -> None:
    code = "import sys, posttrain.rollout.engine_options, posttrain.rollout.base; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": 2.0}, {"n": 0}]
    + [{"max_new_tokens": 0}, {"repetition_penalty": 0.0}],
)
def test_sampling_out_of_range_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_truncating_options_are_known_by_their_neutral_values() -> None:
    assert Sampling(temperature=0.3, seed=1, n=4).truncating == frozenset()
    assert Sampling(top_p=0.9, min_p=0.1).truncating == {"top_p", "min_p"}
    assert Sampling(repetition_penalty=1.1, top_k=5).truncating == {"repetition_penalty", "top_k"}


def test_rows_are_prompt_major_with_a_seed_each() -> None:
    found = rows([[1], [2]], Sampling(n=2, seed=10))
    assert [(prompt, one.seed, one.n) for prompt, one in found] == [
        ([1], 10, 1),
        ([1], 11, 1),
        ([2], 12, 1),
        ([2], 13, 1),
    ]
    assert [one.seed for _, one in rows([[1]], Sampling(n=2))] == [None, None]
    with pytest.raises(ValueError, match="n = 1"):
        rows([[1]], [Sampling(n=2)])


def test_a_seed_depends_on_its_parts_alone() -> None:
    # sha256("0/round/3"), first six bytes: fixed, so that a resumed run on another machine draws the same
    assert stable_seed(0, "round", 3) == int.from_bytes(
        __import__("hashlib").sha256(b"0/round/3").digest()[:6]
    )
    assert stable_seed(0, "round", 3) != stable_seed(0, "round", 4)
    assert stable_seed(1, 23) != stable_seed(12, 3)


def test_versions_of_tokens() -> None:
    assert Completion([5, 6, 7], [-1.0] * 3, "stop", ((2, 1), (4, 2))).versions == [2, 4, 4]
