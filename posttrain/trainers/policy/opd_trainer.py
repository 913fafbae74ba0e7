"""On-policy distillation: a frozen teacher scores what the policy samples (posttrain/objectives/opd.py)."""

# pyright: reportArgumentType=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from posttrain.objectives.base import Groups
from posttrain.objectives.opd import OPD
from posttrain.rollout.model_folder import load_dense, tokenizer_of
from posttrain.trainers.forward.base import Rows, Wanted
from posttrain.trainers.models.reference import frozen_reference
from posttrain.trainers.models.soups import SoupError, check_vocabulary
from posttrain.trainers.models.whole_weights import whole_weights_everywhere
from posttrain.trainers.policy.reward_kl import with_teacher_gap
from posttrain.trainers.policy.served_teacher import ServedTeacher
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig, flat_config

OPDConfig = flat_config("OPDConfig", PolicyConfig, OPD, __name__)


class OPDTrainer(PolicyTrainer):
    """`OPDTrainer(model, args=OPDConfig(output_dir=..., teacher_model="folder"), train_dataset=prompts)`.

    reward_funcs  may be left out while `reward_coef` is 0
    teacher       a model in place of the folder that `teacher_model` names; its tokenizer is taken to be the policy's

    With `teacher_server` a vLLM server is asked in place of a model here.

    Raises ValueError without a teacher, and for one whose tokenizer numbers its tokens otherwise than the policy's.
    """

    objective_class = OPD
    config_class = OPDConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        teacher: Any = None,
        **named: Any,
    ) -> None:
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, **named)
        settings: Any = self.objective
        self.served: ServedTeacher | None = None
        if settings.teacher_server is not None:
            self._ask_server(settings, teacher)
            return
        if teacher is None:
            if settings.teacher_model is None:
                raise ValueError("OPD: no teacher: name its folder in teacher_model, or pass it as teacher=")
            teacher = self._load(settings.teacher_model, settings.teacher_dtype)
        self.teacher = frozen_reference(self, teacher)

    def _ask_server(self, settings: Any, teacher: Any) -> None:
        if teacher is not None:
            raise ValueError("OPD: a teacher was passed and teacher_server is set; leave one of them out")
        if self.temperature != 1:
            raise ValueError(
                f"OPD: a server's log-probs are at temperature 1, and responses are sampled at {self.temperature:g}; "
                "sample at 1, or hold the teacher here (teacher_model without teacher_server)"
            )
        self.served = ServedTeacher(settings, self.processing_class)
        where = f"{self.served.model} on {self.served.server.url}"
        self.accelerator.print(f"teacher: {where}; its tokenizer is the policy's")

    def _load(self, folder: str, dtype: str) -> Any:
        try:
            check_vocabulary(self.processing_class, "the policy", tokenizer_of(folder), folder)
        except SoupError:
            raise ValueError(
                f"OPD: the teacher {folder} has another tokenizer than the policy, so it cannot be asked about the "
                "policy's tokens: take a teacher of the same family, or learn its answers by sft"
            ) from None
        with whole_weights_everywhere():
            return load_dense(folder, dtype=dtype)

    def scored_groups(self, groups: Groups, output: Mapping[str, Any]) -> Groups:
        return with_teacher_gap(self, self._teachers, super().scored_groups(groups, output), output)

    def _teachers(self, rows: Rows) -> Tensor:
        """The teacher's log-probs (B, T)."""
        if self.served is not None:
            return self.served.logprobs(rows)
        wanted = Wanted(rows_at_once=self.args.per_device_train_batch_size)
        return self.scorer.score(self.teacher, rows, wanted).logprobs
