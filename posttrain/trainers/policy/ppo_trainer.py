"""The trainers of PPO and PPO-max: a policy trainer that may also learn from texts (texts_beside.py)."""

# pyright: reportArgumentType=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

from typing import Any

from datasets import Dataset
from torch import Tensor

from posttrain.objectives.ppo import PPO
from posttrain.objectives.ppo_max import PPOMax
from posttrain.trainers.forward.plain import untempered
from posttrain.trainers.policy.loss_metrics import LossMetrics
from posttrain.trainers.policy.policy_step import PolicyStep
from posttrain.trainers.policy.text_rows import TokenTexts, read_texts
from posttrain.trainers.policy.texts_beside import TextsBeside
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig, flat_config

PPOConfig = flat_config("PPOConfig", PolicyConfig, PPO, __name__)
PPOMaxConfig = flat_config("PPOMaxConfig", PolicyConfig, PPOMax, __name__)


class PPOTrainer(PolicyTrainer):
    """`PPOTrainer(model, reward_funcs, args=PPOConfig(output_dir=...), train_dataset=prompts)`.

    ptx_dataset  texts of the language modelling loss, in place of the file that `ptx_data` names: rows with a column
                 text, or with prompt and completion

    A `PolicyTrainer`, whose parameters it has. Raises ValueError for texts without `ptx_coef`, or the other way round.
    """

    objective_class = PPO
    config_class = PPOConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        ptx_dataset: Dataset | None = None,
        **named: Any,
    ) -> None:
        self.ptx: TextsBeside | None = None
        self._given_texts = ptx_dataset
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, **named)

    def make_step(self) -> PolicyStep:
        self.ptx = self._texts_beside()
        kind = PolicyStep if self.ptx is None else StepWithTexts
        metrics = LossMetrics(self.accelerator)
        return kind(self, self.objective, self.method, metrics, self._read, self._micro_batches())

    def _texts_beside(self) -> TextsBeside | None:
        settings: Any = self.objective
        named = settings.ptx_data is not None or self._given_texts is not None
        if not settings.ptx_coef:
            if named:
                raise ValueError(
                    f"{type(self).__name__}: the texts have no effect at ptx_coef 0; set it above 0"
                )
            return None
        if not named:
            raise ValueError(
                f"{type(self).__name__}: ptx_coef {settings.ptx_coef:g} has no texts; name ptx_data"
            )
        rows = self._given_texts
        if rows is None:
            prompts: Any = self.train_dataset
            chat = isinstance(next(iter(prompts))["prompt"], list)
            rows = read_texts(settings.ptx_data, chat=chat)
        tokenizer: Any = self.processing_class
        texts = TokenTexts(rows, tokenizer, settings.ptx_max_length)
        args: Any = self.args
        ranks = self.accelerator.num_processes
        responses = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks
        per_step = settings.ptx_batch_size or responses
        self.accelerator.print(
            f"texts beside (ptx): {texts.in_words()}; {per_step:,} texts per optimizer step"
        )
        return TextsBeside(
            self,
            texts,
            per_step=per_step,
            coefficient=settings.ptx_coef,
            name=self.method,
            filler=tokenizer.pad_token_id,
            scorer=untempered(self.scorer, float32=args.cast_lm_head_to_fp32),
        )

    def shared_state(self) -> dict[str, Any]:
        found = super().shared_state()
        return found if self.ptx is None else {**found, "ptx": self.ptx.state()}

    def load_shared_state(self, state: dict[str, Any]) -> None:
        super().load_shared_state(state)
        if (self.ptx is None) != ("ptx" not in state):
            raise ValueError(
                "ptx: one of this run and its checkpoint learns from texts beside the policy, the other does not; "
                "resume with the settings it was made with"
            )
        if self.ptx is not None:
            self.ptx.load_state(state["ptx"])


class PPOMaxTrainer(PPOTrainer):
    """`PPOMaxTrainer(model, reward_funcs, args=PPOMaxConfig(output_dir=...), train_dataset=prompts)`.

    PPO with the devices of arXiv 2307.04964, each a setting of PPOMaxConfig; its parameters are PPOTrainer's, texts for
    PPO-ptx (`ptx_dataset`) among them."""

    objective_class = PPOMax
    config_class = PPOMaxConfig


class StepWithTexts(PolicyStep):
    """Learns from the texts before the first micro-batch; while the critic learns alone no text is drawn."""

    learns_from_texts = True

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        host: Any = self.host
        critic = host.critic
        if self.position != 0 or (critic is not None and critic.alone):
            return super().loss(model, inputs)
        beside = host.ptx.learn(model)
        return super().loss(model, inputs) + beside
