"""AlpacaEval 2 through the `alpaca_eval` package: its prompts, its parsers, its metrics.

Dubois et al. 2024, https://arxiv.org/abs/2404.04475 (length-controlled win rate). Ours are the transport
(judge.py), the join on the instruction, and the checks: the regression finds an instruction's difficulty by
its row number, so rows out of the canonical order of the 805 give a wrong rate without a word.

The package's own cache and weights live in site-packages; nothing is written there (no cache, no weights
saved).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.evaluation.answer_files import short

HUB_DATASET = "tatsu-lab/alpaca_eval"
GAMED = "df_gamed.csv"
COUNT = 805
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
LC_RESAMPLES = 100

Complete = Callable[..., dict[str, list[Any]]]
"""`fn_completions` of the package: prompts and the annotator's arguments -> {"completions": ..., ...}."""


@dataclass(frozen=True)
class OutputPair:
    """One instruction with both outputs: the reference's and the model's."""

    instruction: str
    reference: str
    output: str


@dataclass(frozen=True)
class Rates:
    """Percent, as published. `length_controlled` is None with a reason where the hub's file is not to be
    had."""

    win_rate: float
    standard_error: float | None
    discrete_win_rate: float
    judged: int
    length_controlled: float | None
    lc_standard_error: float | None
    lc_missing: str | None


def join(references: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> list[OutputPair]:
    """Pairs in the order of the references, joined on the instruction.

    References and outputs hold "instruction" and "output". ValueError unless both hold the same 805
    instructions, each once.
    """
    if len(references) != COUNT:
        raise ValueError(f"AlpacaEval has {COUNT} instructions; the reference outputs are {len(references)}")
    wanted = {row["instruction"] for row in references}
    found: dict[str, str] = {}
    for row in outputs:
        if row["instruction"] in found:
            raise ValueError(f"two outputs for the instruction {short(row['instruction'])}")
        found[row["instruction"]] = row["output"]
    unknown = [text for text in found if text not in wanted]
    missing = [text for text in wanted if text not in found]
    if unknown or missing or len(wanted) != COUNT:
        example = short((unknown or missing or [""])[0])
        raise ValueError(
            f"outputs and the {COUNT} instructions differ: {len(missing)} have no output, {len(unknown)} outputs have "
            f"no such instruction (for instance {example}); a rate over a part is not AlpacaEval's"
        )
    return [OutputPair(row["instruction"], row["output"], found[row["instruction"]]) for row in references]


class Annotator:
    """An annotator configuration of the package with a transport of ours.

    `judge` runs it over pairs and gives preferences in [1, 2]: 1 the reference wins, 2 the model wins, 1.5
    a tie, NaN where no judgement could be had. Which output is shown first is the package's choice, by
    instruction.
    """

    def __init__(self, name: str, complete: Complete) -> None:
        package = import_package()
        config = _configuration(package, name)
        self.name = name
        self.failures: dict[str, int] = {}
        self._first_shown: list[float] = []
        parser = config.pop("fn_completion_parser", "regex_parser")
        arguments = config.pop("completion_parser_kwargs", {})
        self._parse = getattr(package.completion_parsers, parser)
        self._arguments = arguments
        self._read_from = config.get("completion_key", "completions")
        config.pop("fn_completions", None)
        if config.get("batch_size", 1) != 1:
            raise ValueError(
                f"annotator {name!r} asks for several pairs in one prompt; choose one with batch_size 1"
            )
        folder = package.constants.EVALUATORS_CONFIG_DIR
        self._annotator = package.pairwise.SinglePairwiseAnnotator(
            **config,
            fn_completions=complete,
            fn_completion_parser=self._parsed,
            seed=0,  # the published annotations' seed: it decides which output is shown first
            base_dir=folder,
            annotation_column="preference",
            completion_column="preference_raw_completion",
        )

    def judge(self, pairs: Sequence[OutputPair], *, swapped: bool = False) -> tuple[list[float], float]:
        """Preferences in the order of `pairs`, and the share of judgements for the output shown first.

        `swapped` shows every pair in the other order; the preferences are still the model's.
        """
        import pandas as pd

        first, second = ("output", "reference") if swapped else ("reference", "output")
        frame = pd.DataFrame(
            [
                {
                    "instruction": p.instruction,
                    "output_1": getattr(p, first),
                    "output_2": getattr(p, second),
                    "row": i,
                }
                for i, p in enumerate(pairs)
            ]
        )
        equal = (frame["output_1"] == frame["output_2"]).to_numpy()
        preferences = [1.5 if same else math.nan for same in equal]
        self._first_shown = []
        with quiet():
            judged = self._annotator(frame[~equal].copy())
        for row, preference in zip(judged["row"], judged["preference"], strict=True):
            value = 1.5 if float(preference) == 0 else float(preference)
            preferences[int(row)] = 3 - value if swapped else value
        shown = self._first_shown
        return preferences, sum(shown) / len(shown) if shown else math.nan

    def readable(self, answer: dict[str, Any]) -> bool:
        """Whether an answer of the transport holds a verdict."""
        completion = answer["text"] if self._read_from == "completions" else answer
        return isinstance(self._verdict(completion), float)

    def _parsed(self, completion: Any) -> list[float]:
        """The package's parser; what it cannot read is a failed judgement with a reason, never a
        preference."""
        value = self._verdict(completion)
        if isinstance(value, str):
            self.failures[value] = self.failures.get(value, 0) + 1
            return [math.nan]
        self._first_shown.append(1.0 if value < 1.5 else 0.5 if value == 1.5 else 0.0)
        return [value]

    def _verdict(self, completion: Any) -> float | str:
        """A preference in [1, 2] for what is shown second, or why there is none."""
        if completion is None:
            return "no answer from the judge"
        try:
            values = self._parse(completion, **self._arguments)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            return "answer without what the parser reads"
        if len(values) != 1 or values[0] is None or math.isnan(float(values[0])):
            return "answer names neither output"
        value = 1.5 if float(values[0]) == 0 else float(values[0])
        return value if 1 <= value <= 2 else "answer names neither output"


def rates(
    pairs: Sequence[OutputPair],
    preferences: Sequence[float],
    *,
    model: str,
    reference: str,
    judge: str,
    gamed: Path | None,
    resamples: int = LC_RESAMPLES,
) -> Rates:
    """Win rate and length-controlled win rate of 805 preferences in canonical order; NaN = failed judgement.

    The first few alone have a win rate: the regression finds an instruction by its place among all.

    `gamed` is the hub's df_gamed.csv (or .csv.gz); None asks the hub for it. Each of `resamples` fits for the
    length-controlled rate's error takes a quarter of a second.
    """
    import pandas as pd

    if len(pairs) != len(preferences) or not 0 < len(pairs) <= COUNT:
        raise ValueError(f"{len(pairs)} pairs and {len(preferences)} preferences; AlpacaEval has {COUNT}")
    if all(math.isnan(p) for p in preferences):
        raise ValueError("not one of the judgements holds a verdict, so there is no rate")
    package = import_package()
    frame = pd.DataFrame(
        {
            "instruction": [p.instruction for p in pairs],
            "output_1": [p.reference for p in pairs],
            "output_2": [p.output for p in pairs],
            # equal names would switch the regression off
            "generator_1": f"reference: {reference}",
            "generator_2": f"model: {model}",
            "annotator": judge,
            "preference": list(preferences),
        }
    )
    plain = package.metrics.get_winrate(frame)
    lc, error, missing = _length_controlled(package, frame, gamed, resamples)
    return Rates(
        win_rate=float(plain["win_rate"]),
        standard_error=_finite(plain["standard_error"]),
        discrete_win_rate=float(plain["discrete_win_rate"]),
        judged=int(plain["n_total"]),
        length_controlled=lc,
        lc_standard_error=error,
        lc_missing=missing,
    )


def _finite(value: Any) -> float | None:
    """A number for a file; None where there is none, as for the error of a single judgement."""
    return float(value) if math.isfinite(float(value)) else None


def _length_controlled(
    package: Package, frame: Any, gamed: Path | None, resamples: int
) -> tuple[float | None, float | None, str | None]:
    """The rate, its standard error over instructions, and why there is none.

    The error is that of drawing other instructions and fitting again: the published one is the spread of the fitted
    preferences, in which the fit has no uncertainty, and is several times too small.
    """
    import numpy as np

    if len(frame) < COUNT:
        return None, None, f"the regression needs all {COUNT} instructions; these are the first {len(frame)}"
    lengths = frame["output_1"].str.len() - frame["output_2"].str.len()
    if (frame["output_1"] == frame["output_2"]).all():
        return 50.0, 0.0, None  # every pair is a tie
    if lengths.nunique() == 1:
        return None, None, "every length difference is the same: there is no length to control for"
    judged = int(frame["preference"].notna().sum())
    if 2 * judged < COUNT:
        return None, None, f"{judged} of {COUNT} judgements are too few for the regression"

    def fit(rows: Any) -> float:
        found = package.metrics.get_length_controlled_winrate(
            rows, save_weights_dir=None, is_add_glm_preference_inplace=False, is_warn_extreme_changes=False
        )
        return float(found["length_controlled_winrate"])

    rng = np.random.default_rng(0)
    try:
        with hub_file(package, gamed), quiet():
            rate = fit(frame)
            # the rows' index names the instruction, also where a row was drawn twice
            drawn = [fit(frame.iloc[rng.integers(0, COUNT, COUNT)]) for _ in range(resamples)]
    except HubFileMissing as error:
        return None, None, str(error)
    if not math.isfinite(rate):
        return None, None, "the regression found no finite rate"
    return rate, _finite(np.std(drawn, ddof=1)) if resamples > 1 else None, None


class HubFileMissing(RuntimeError):
    """The file of the gamed rows is neither given nor to be had from the hub."""


@contextmanager
def hub_file(package: Package, gamed: Path | None) -> Iterator[None]:
    """Has the package read `gamed` where it would ask the hub: it offers no argument for the path."""
    module = package.glm
    original = module.hf_hub_download

    def fetch(**request: Any) -> str:
        if gamed is not None and request["filename"] == GAMED:
            return str(gamed)
        try:
            return original(**request)
        except (
            OSError,
            ValueError,
        ) as error:  # huggingface_hub: offline, not cached, not reachable, not found
            raise HubFileMissing(
                f"the length-controlled rate needs {request['filename']} of the hub dataset {HUB_DATASET}, which is "
                f"not to be had here ({type(error).__name__}): fetch it where there is a network and put it at "
                f"DATA/alpaca_eval/{GAMED}, or name it with --df-gamed"
            ) from None

    module.hf_hub_download = fetch
    try:
        yield
    finally:
        module.hf_hub_download = original


@dataclass(frozen=True)
class Package:
    """The modules of alpaca_eval used here."""

    constants: Any
    completion_parsers: Any
    pairwise: Any
    metrics: Any
    glm: Any
    utils: Any


def import_package() -> Package:
    """alpaca_eval; ImportError naming the extra where it is not installed."""
    root = logging.getLogger()
    level = root.level
    try:
        import alpaca_eval.metrics as metrics
        from alpaca_eval import completion_parsers, constants, utils
        from alpaca_eval.annotators import pairwise_evaluator
        from alpaca_eval.metrics import glm_winrate
    except ModuleNotFoundError as error:
        raise ImportError(
            f"AlpacaEval needs the eval extra (no module {error.name!r}): pip install 'posttrain[eval]'"
        ) from None
    finally:
        root.setLevel(level)  # the package turns the root logger to INFO
    return Package(constants, completion_parsers, pairwise_evaluator, metrics, glm_winrate, utils)


def _configuration(package: Package, name: str) -> dict[str, Any]:
    path = Path(name) if Path(name).exists() else package.constants.EVALUATORS_CONFIG_DIR / name
    if not path.exists():
        raise ValueError(f"alpaca_eval has no annotator {name!r}; see its evaluators_configs, or give a path")
    configurations = package.utils.load_configs(path)
    if len(configurations) != 1:
        raise ValueError(f"annotator {name!r} holds {len(configurations)} configurations; one is needed")
    return dict(next(iter(configurations.values())))


@contextmanager
def quiet() -> Iterator[None]:
    """The package logs each parse failure with a traceback and sklearn warns of its own future; both are
    counted or pinned here."""
    import warnings

    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
