"""iTool, iterative reinforced fine-tuning for tool use. Zeng et al. 2025, https://arxiv.org/abs/2501.09766

Against SimPO on fixed pairs: in each iteration the rows whose gold call surprises the policy most are searched by a
tree over fragments of a call, which the policy writes and judges itself; where a step has a good and a bad
continuation, the two are a pair behind the same partial call.

    -log sigma(beta * [mean log-prob, chosen - rejected] - gamma)        (SimPO, of fragments instead of answers)

The parts: deficiency.py (which rows), call_search.py (the tree), step_pairs.py (the pairs); the loop stands in
posttrain/trainers/staged/itool.py.
Departures, unless `compat: reference`: a fragment is scored by the structure of the call, not by its words; values are
compared per visit, not as sums; a piece that only the limit of tokens ended is no node. Always: a letter of the
judgement is its own token and nothing that contains it; fragments are joined as tokens, without added spaces; the
logarithm of no visits is 0; an adapter is trained on, not merged and begun anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.preferences.base import PairBatch, PairLoss
from posttrain.preferences.simpo import SimPO
from posttrain.settings import RunView


@dataclass(frozen=True)
class ITool(PairLoss):
    """iTool's settings and the loss of one iteration; `beta` is the trainer's (released script: 2.5)."""

    needs_columns: ClassVar[tuple[str, ...]] = ("answer",)
    needs_reference: ClassVar[bool] = False
    in_stages: ClassVar[bool] = True
    makes_pairs: ClassVar[bool] = True

    iterations: Annotated[int, Gt(0)] = 3
    """searches and trainings in turn; the released script runs 1"""
    hardest_share: Annotated[float, Gt(0), Le(1)] = 0.3
    """of the rows with a call, and of those without, those of highest perplexity"""
    searches: Annotated[int, Gt(0)] = 5
    """rounds of the tree search, a row"""
    children: Annotated[int, Gt(1)] = 3
    """n, continuations per expanded node"""
    depth: Annotated[int, Gt(0)] = 3
    """levels of the tree"""
    step_limit: Annotated[int, Gt(0)] = 2
    """pieces joined to one fragment"""
    exploration: Annotated[float, Ge(0)] = 1.0
    """c"""
    rollout_steps: Annotated[int, Ge(0)] = 2
    """fragments written behind a leaf before it is judged"""
    min_gap: Annotated[float, Ge(0)] = 0.1
    """least distance of the two values of a pair"""
    max_overlap: Annotated[float, Ge(0), Le(1)] = 0.95
    """most words that the two fragments may share"""
    min_value: float = -0.3
    """least value of a chosen fragment"""
    max_pairs: Annotated[int, Gt(0)] = 4000
    """of one iteration; further ones are left out and counted"""
    margin: Annotated[float, Ge(0)] = 0.5
    """gamma"""
    compat: Literal["corrected", "reference"] = "corrected"
    """"reference" scores by word overlap, compares sums and keeps cut pieces, as released"""

    @property
    def draws_answers(self) -> bool:
        return True

    @property
    def stages(self) -> str:
        return "1 iteration" if self.iterations == 1 else f"{self.iterations} iterations"

    def faults(self, run: RunView) -> Iterator[str]:
        yield from run.refused_train(
            {
                "sync_ref_model": "its loss has no reference",
                "precompute_ref_log_probs": "its loss has no reference",
            }
        )
        if run.rollout is not None and run.rollout.engine != "transformers":
            yield (
                f"rollout: engine '{run.rollout.engine}' does not judge; method '{run.method}' asks the policy for the "
                "probabilities of given tokens as it searches; use transformers"
            )

    def warnings(self, run: RunView) -> Iterator[str]:
        if run.train.beta < 1:
            yield (
                f"train: beta is {run.train.beta:g}, DPO's size; the rewards of method '{run.method}' are means over "
                "tokens, and the released script has 2.5"
            )

    @property
    def _simpo(self) -> SimPO:
        return SimPO(margin=self.margin)

    def pair_loss(self, batch: PairBatch) -> Tensor:
        return self._simpo.pair_loss(batch)

    def rewards(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        return self._simpo.rewards(batch)

    def metrics(self, batch: PairBatch) -> dict[str, Tensor]:
        return {
            "chosen_fragment_tokens": batch.chosen_lengths.to(batch.chosen_logps.dtype),
            "rejected_fragment_tokens": batch.rejected_lengths.to(batch.chosen_logps.dtype),
        }
