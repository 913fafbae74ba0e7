# Made by `python -m posttrain.trainers.seam.stub`; a test holds it to what that gives.
# ruff: noqa: E501
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.trainers.flow.diffusion_dpo_trainer import DiffusionDPOTrainer as DiffusionDPOTrainer
from posttrain.trainers.flow.flow_config import FlowArguments
from posttrain.trainers.flow.flow_sft_trainer import FlowSFTTrainer as FlowSFTTrainer
from posttrain.trainers.flow.seppo_diffusion_trainer import SePPODiffusionTrainer as SePPODiffusionTrainer
from posttrain.trainers.flow.trainer import FlowTrainer
from posttrain.trainers.masked.sft import MaskedConfig, MaskedSFTTrainer as MaskedSFTTrainer
from posttrain.trainers.masked.trainer import DiffusionTrainer
from posttrain.trainers.policy.opd_trainer import OPDTrainer as OPDTrainer
from posttrain.trainers.policy.ppo_trainer import PPOMaxTrainer as PPOMaxTrainer, PPOTrainer as PPOTrainer
from posttrain.trainers.policy.salsa_trainer import SALSATrainer as SALSATrainer
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.preference.kto_trainer import KTOTrainer as KTOTrainer, MarkedAnswersConfig
from posttrain.trainers.preference.reward_trainer import PairScoreConfig, RewardModelTrainer as RewardModelTrainer
from posttrain.trainers.preference.sft import SFTTrainer as SFTTrainer
from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer
from posttrain.trainers.reporting.run_report import RunReport as RunReport
from posttrain.trainers.seam.config import PolicyConfig
from posttrain.trainers.staged.drift import DRIFTTrainer as DRIFTTrainer
from posttrain.trainers.staged.itool import IToolTrainer as IToolTrainer
from posttrain.trainers.staged.seppo import SePPOTrainer as SePPOTrainer
from transformers.training_args import TrainingArguments
from trl.trainer.sft_config import SFTConfig as SFTConfig

@dataclass
class GRPOConfig(PolicyConfig):
    """PolicyConfig and the settings of GRPO."""
    clip_low: float = ...
    """epsilon below 1"""
    clip_high: float = ...
    """epsilon above 1"""
    scale: Literal['group', 'batch', 'none'] = ...
    """whose standard deviation divides the advantage"""
    dual_clip: float | None = ...
    """c of dual-clip PPO (a bound), for negative advantages; off"""

class GRPOTrainer(PolicyTrainer):
    """GRPO: group-relative policy optimisation. `help(GRPOConfig)` lists its settings."""
    args: GRPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: GRPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class DrGRPOConfig(PolicyConfig):
    """PolicyConfig and the settings of DrGRPO."""
    clip_low: float = ...
    """epsilon below 1"""
    clip_high: float = ...
    """epsilon above 1"""
    dual_clip: float | None = ...
    """c of dual-clip PPO (a bound), for negative advantages; off"""

class DrGRPOTrainer(PolicyTrainer):
    """DrGRPO: GRPO without its length and difficulty bias. `help(DrGRPOConfig)` lists its settings."""
    args: DrGRPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: DrGRPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class DAPOConfig(PolicyConfig):
    """PolicyConfig and the settings of DAPO."""
    clip_low: float = ...
    """epsilon_low"""
    clip_high: float = ...
    """epsilon_high"""
    scale: Literal['group', 'batch', 'none'] = ...
    """whose standard deviation divides the advantage"""
    dual_clip: float | None = ...
    """c of dual-clip PPO (a bound), for negative advantages; off"""

class DAPOTrainer(PolicyTrainer):
    """DAPO: clip-higher and a token-level loss. `help(DAPOConfig)` lists its settings."""
    args: DAPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: DAPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class GSPOConfig(PolicyConfig):
    """PolicyConfig and the settings of GSPO."""
    clip_low: float = ...
    """epsilon below 1, section 5.1"""
    clip_high: float = ...
    """epsilon above 1, section 5.1"""
    scale: Literal['group', 'batch', 'none'] = ...
    """whose standard deviation divides the advantage"""
    dual_clip: float | None = ...
    """c of dual-clip PPO (a bound), for negative advantages; off"""

class GSPOTrainer(PolicyTrainer):
    """GSPO: one importance ratio per response. `help(GSPOConfig)` lists its settings."""
    args: GSPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: GSPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class CISPOConfig(PolicyConfig):
    """PolicyConfig and the settings of CISPO."""
    ratio_max: float = ...
    """1 + epsilon_high^IS: a bound, not an epsilon"""
    scale: Literal['group', 'batch', 'none'] = ...
    """whose standard deviation divides the advantage"""

class CISPOTrainer(PolicyTrainer):
    """CISPO: clipped importance weights, no token loses its gradient. `help(CISPOConfig)` lists its settings."""
    args: CISPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: CISPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class REINFORCEConfig(PolicyConfig):
    """PolicyConfig and the settings of REINFORCE."""
    baseline: Literal['group', 'none'] = ...
    """subtracted from the reward: the mean of its group, or nothing"""

class REINFORCETrainer(PolicyTrainer):
    """REINFORCE: group baseline, no ratio clip. `help(REINFORCEConfig)` lists its settings."""
    args: REINFORCEConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: REINFORCEConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class RLOOConfig(PolicyConfig):
    """PolicyConfig and the settings of RLOO."""
    clip: float | None = ...
    """epsilon on either side of the response's ratio; off"""

class RLOOTrainer(PolicyTrainer):
    """RLOO: whole responses against the mean of the others. `help(RLOOConfig)` lists its settings."""
    args: RLOOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: RLOOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class REINFORCEPlusPlusConfig(PolicyConfig):
    """PolicyConfig and the settings of REINFORCEPlusPlus."""
    baseline: Literal['none', 'group'] = ...
    """subtracted before normalising: nothing (the KL is in the reward), or the mean of the group (it is in the loss)"""
    clip_low: float = ...
    """epsilon below 1"""
    clip_high: float = ...
    """epsilon above 1"""

class REINFORCEPlusPlusTrainer(PolicyTrainer):
    """REINFORCEPlusPlus: advantages normalised over the batch, KL in the reward. `help(REINFORCEPlusPlusConfig)` lists its settings."""
    args: REINFORCEPlusPlusConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: REINFORCEPlusPlusConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class PPOConfig(PolicyConfig):
    """PolicyConfig and the settings of PPO."""
    clip_low: float = ...
    """epsilon below 1"""
    clip_high: float = ...
    """epsilon above 1"""
    dual_clip: float | None = ...
    """c of dual-clip PPO (a bound), for negative advantages; off"""
    gamma: float = ...
    """discount per token"""
    gae_lambda: float = ...
    """lambda of GAE: 1 trusts the rewards alone, 0 the critic's next value"""
    kl: Literal['reward', 'loss'] = ...
    """where train.beta times the KL to the reference goes: off each token's reward, or into the loss"""
    whiten: bool = ...
    """advantages minus their mean over their standard deviation, over the tokens of the rollout"""
    advantage_clip: float | None = ...
    """bound of an advantage's size, after whitening; off"""
    loss_over: Literal['tokens', 'responses'] = ...
    """what the policy's loss is a mean over"""
    baseline: Literal['critic', 'group'] = ...
    """a critic's values, or GRPO's: the mean of the group, over its standard deviation, and no critic"""
    critic_model: str | None = ...
    """folder or hub name that the critic starts from, of a reward model or a language model; the policy's start"""
    share_trunk: bool = ...
    """the critic is a value head on the policy's own hidden states, which learn from both losses"""
    critic_learning_rate: float = ...
    """of the critic, or of the value head; constant"""
    critic_warmup: int = ...
    """optimizer steps at the start in which the critic alone learns and the policy stays as it is"""
    value_clip: float | None = ...
    """how far a value may be pulled from the one at sampling time"""
    value_coef: float = ...
    """weight of the value loss beside the policy's, where they share the trunk"""
    ptx_data: str | None = ...
    """file of texts for a language modelling loss beside: a column text, or prompt and completion, or messages"""
    ptx_coef: float = ...
    """weight of that loss, a mean over the texts' tokens; 0: no texts"""
    ptx_batch_size: int | None = ...
    """texts of an optimizer step, over all processes; as many as it has responses"""
    ptx_max_length: int = ...
    """tokens at which a text is cut"""

@dataclass
class PPOMaxConfig(PolicyConfig):
    """PolicyConfig and the settings of PPOMax."""
    clip_low: float = ...
    """epsilon below 1"""
    clip_high: float = ...
    """epsilon above 1"""
    dual_clip: float | None = ...
    """c of dual-clip PPO (a bound), for negative advantages; off"""
    gamma: float = ...
    """discount per token"""
    gae_lambda: float = ...
    """lambda of GAE: 1 trusts the rewards alone, 0 the critic's next value"""
    kl: Literal['reward', 'loss'] = ...
    """where train.beta times the KL to the reference goes: off each token's reward, or into the loss"""
    whiten: bool = ...
    """advantages minus their mean over their standard deviation, over the tokens of the rollout"""
    advantage_clip: float | None = ...
    """bound of an advantage's size, after whitening; off"""
    loss_over: Literal['tokens', 'responses'] = ...
    """what the policy's loss is a mean over"""
    baseline: Literal['critic', 'group'] = ...
    """a critic's values, or GRPO's: the mean of the group, over its standard deviation, and no critic"""
    critic_model: str | None = ...
    """folder or hub name that the critic starts from, of a reward model or a language model; the policy's start"""
    share_trunk: bool = ...
    """the critic is a value head on the policy's own hidden states, which learn from both losses"""
    critic_learning_rate: float = ...
    """of the critic, or of the value head; constant"""
    critic_warmup: int = ...
    """optimizer steps at the start in which the critic alone learns and the policy stays as it is"""
    value_clip: float | None = ...
    """how far a value may be pulled from the one at sampling time"""
    value_coef: float = ...
    """weight of the value loss beside the policy's, where they share the trunk"""
    ptx_data: str | None = ...
    """file of texts for a language modelling loss beside: a column text, or prompt and completion, or messages"""
    ptx_coef: float = ...
    """weight of that loss, a mean over the texts' tokens; 0: no texts"""
    ptx_batch_size: int | None = ...
    """texts of an optimizer step, over all processes; as many as it has responses"""
    ptx_max_length: int = ...
    """tokens at which a text is cut"""
    reward_norm: Literal['none', 'scale', 'norm'] = ...
    """norm: minus the mean, over the standard deviation of all rewards so far; scale: over it alone, as the scripts"""
    reward_clip: float | None = ...
    """delta: bound of a reward's size after that; the paper studies 0.3 and 0.8"""
    target_entropy: float | None = ...
    """H* in nats per token, which the policy's entropy is pulled to; the paper studies 30 and 35"""
    target_entropy_coef: float | None = ...
    """c_e: weight of |H - H*|, a mean over the step's tokens; off"""

@dataclass
class OPDConfig(PolicyConfig):
    """PolicyConfig and the settings of OPD."""
    teacher_model: str | None = ...
    """folder or hub name of the teacher, which must have the policy's tokenizer; with teacher_server its name there"""
    teacher_server: str | None = ...
    """http://host:port of a vLLM server that runs the teacher, in place of this process"""
    teacher_batch_size: int = ...
    """responses of one call to the server"""
    teacher_timeout_s: float = ...
    """seconds that one call to the server may take, its retries included"""
    teacher_retries: int = ...
    """further tries of such a call"""
    teacher_api_key_env: str = ...
    """environment variable with the server's key"""
    teacher_dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = ...
    """of the teacher's weights; auto: as they are saved"""
    reward_coef: float = ...
    """weight of the rewards, minus their group's mean, beside the teacher; 0: no rewards are needed"""
    gap_clip: float | None = ...
    """bound in nats of what the teacher says about one token; off"""
    clip_low: float = ...
    """epsilon below 1"""
    clip_high: float = ...
    """epsilon above 1"""

@dataclass
class OnlineDPOConfig(PolicyConfig):
    """PolicyConfig and the settings of OnlineDPO."""
    pairs: Literal['best_worst', 'drawn'] = ...
    """of a group: its best and its worst answer, or neighbours in the order sampled"""
    preference_scale: float | None = ...
    """the better answer is preferred with probability sigma(reward gap / this); off: for sure"""
    parl_coef: float = ...
    """weight of PARL's term; 0: off, 1: the published gradient; above train.beta it cost accuracy here"""
    parl_baseline: Literal['others', 'indifferent', 'none'] = ...
    """b of PARL's term: mean F of the step's other pairs, log 1/2, or 0"""
    parl_ratio_max: float = ...
    """most that a pair's importance ratio weighs in PARL's term, on samples that are not fresh"""

class OnlineDPOTrainer(PolicyTrainer):
    """OnlineDPO: DPO on pairs that the policy samples and the rewards judge, with PARL's term as an option. `help(OnlineDPOConfig)` lists its settings."""
    args: OnlineDPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: OnlineDPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class SAPOConfig(PolicyConfig):
    """PolicyConfig and the settings of SAPO."""
    gate_positive: float = ...
    """tau_pos, the gate's temperature where the advantage is positive: the higher, the faster a gradient fades"""
    gate_negative: float = ...
    """tau_neg, where it is negative; above tau_pos, as the paper advises"""
    scale: Literal['group', 'batch', 'none'] = ...
    """whose standard deviation divides the advantage"""

class SAPOTrainer(PolicyTrainer):
    """SAPO: a soft gate on each token's ratio instead of a clip. `help(SAPOConfig)` lists its settings."""
    args: SAPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: SAPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class GDPOConfig(PolicyConfig):
    """PolicyConfig and the settings of GDPO."""
    clip_low: float = ...
    """epsilon below 1"""
    clip_high: float = ...
    """epsilon above 1"""
    dual_clip: float | None = ...
    """c of dual-clip PPO (a bound), for negative advantages; off"""

class GDPOTrainer(PolicyTrainer):
    """GDPO: several rewards, each normalised by itself before the sum. `help(GDPOConfig)` lists its settings."""
    args: GDPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: GDPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class BAPOConfig(PolicyConfig):
    """PolicyConfig and the settings of BAPO."""
    preset: Literal['paper', 'recipe'] = ...
    """whose values fill what is not set: section 5.1, or the code's"""
    target: float | None = ...
    """rho_0 (metric share: 0.4), or k (metric ratio: 1.0)"""
    low: tuple[float, float, float] | None = ...
    """a-, b-, delta_2: start, end, step of the lower bound"""
    high: tuple[float, float, float] | None = ...
    """a+, b+, delta_1: start, end, step of the upper bound"""
    order: Literal['upper_first', 'lower_first'] | None = ...
    """which bound moves first"""
    metric: Literal['share', 'ratio'] | None = ...
    """pos / (pos + neg), or pos / neg"""
    scope: Literal['step', 'microbatch'] | None = ...
    """what the sums run over, always over all ranks"""
    counted: Literal['value', 'gradient'] = ...
    """whether clipped tokens stay in the sums; "gradient" is ours"""
    dual_clip: float | None = ...
    """c of dual-clip PPO, a bound; for A < 0"""
    scale: Literal['group', 'batch', 'none'] = ...
    """whose standard deviation divides the advantage"""

class BAPOTrainer(PolicyTrainer):
    """BAPO: adaptive clipping bounds. `help(BAPOConfig)` lists its settings."""
    args: BAPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: BAPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class BNPOConfig(PolicyConfig):
    """PolicyConfig and the settings of BNPO."""
    reward_range: tuple[float, float] = ...
    """mapped to [0, 1]; of each function if `decompose`"""
    decompose: bool = ...
    """A = plain mean over reward functions of A^(k); weights unused"""
    fixed_shape: tuple[float, float] | None = ...
    """(alpha, beta) instead of the fit"""
    aggregate: Literal['per_response_sum', 'per_response', 'per_token'] = ...
    """as released"""
    match_scale: bool = ...
    """one factor a rollout makes the advantages' root mean square GRPO's; ours"""
    clip_low: float = ...
    """epsilon below 1"""
    clip_high: float = ...
    """epsilon above 1"""
    dual_clip: float | None = ...
    """c of dual-clip PPO, a bound; for A < 0"""

class BNPOTrainer(PolicyTrainer):
    """BNPO: Beta-normalised advantages. `help(BNPOConfig)` lists its settings."""
    args: BNPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: BNPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class COPOConfig(PolicyConfig):
    """PolicyConfig and the settings of COPO."""
    gamma: float = ...
    """gamma: how sharply entropy decides between the losses"""
    rho: float = ...
    """rho, in bits: entropy at which both weigh the same; at most log2 G"""
    selective: Literal['response', 'group', 'degenerate', 'none'] = ...
    """see local_weight"""
    incorrect_at: float = ...
    """a response is incorrect where its reward is at most this"""
    entropy_coefficient: bool = ...
    """global reward times 1 - lambda H (reward_coef_flg), lambda = (1-1/G)/log2 G"""
    clip_low: float = ...
    """epsilon below 1, both losses"""
    clip_high: float = ...
    """epsilon above 1, both losses"""
    dual_clip: float | None = ...
    """c of dual-clip PPO, a bound; for negative advantages"""

class COPOTrainer(PolicyTrainer):
    """COPO: consistency-aware: local and global advantages blended by answer entropy. `help(COPOConfig)` lists its settings."""
    args: COPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: COPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class CAPOConfig(PolicyConfig):
    """PolicyConfig and the settings of CAPO."""
    num_candidates: int = ...
    """K, the candidate ids per token; one alone never moves"""
    base: str = ...
    """whose loss the kept tokens have"""
    base_settings: dict[str, Any] | None = ...
    """the base's own settings, e.g. {clip_high: 0.28}"""
    objective_threshold: float | None = ...
    """tau_H (delta_H); 0 = test off"""
    policy_threshold: float | None = ...
    """tau_F (delta_F); 0 = test off"""
    symmetric: bool = ...
    """-tau_H < m_H; false: 0 <= m_H"""
    excess: Literal['reject', 'scale'] = ...
    """a token over a threshold is left out, or scaled down to it (ours)"""
    optimizer_model: Literal['adam', 'sgd'] = ...
    """Opt: what a token's own step is predicted with"""
    cold_start: Literal['raw', 'adam'] = ...
    """Adam model before its first update: gradient, or Adam"""
    moment_decay: tuple[float, float] = ...
    """beta_1, beta_2 of the Adam model"""
    moment_epsilon: float = ...
    """epsilon of the Adam model"""
    calibrate: bool = ...
    """first steps with the tests off, then the thresholds they propose"""
    calibration_steps: int = ...
    """optimizer steps measured, once the Adam model acts"""
    calibration_holds: bool = ...
    """no token counts while calibrating, so that the policy stays as it is"""
    calibration_follows: bool = ...
    """thresholds rise where later steps would reject more than the target"""
    target_rejection: float = ...
    """share of the tokens with an advantage that the proposed thresholds reject"""

class CAPOTrainer(PolicyTrainer):
    """CAPO: curvature-aware token rejection. `help(CAPOConfig)` lists its settings."""
    args: CAPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: CAPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        ref_model: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class MaskedSFTConfig(MaskedConfig):
    """MaskedConfig and the settings of MaskedSFT."""
    noise: Literal['bernoulli', 'count'] = ...
    """how t and the hidden tokens are drawn"""
    t_floor: float = ...
    """smallest t of bernoulli noise"""
    tail: Literal['fill', 'drop'] = ...
    """what stands behind the first end token"""
    canvas_length: int | None = ...
    """response columns; None: the longest response of the batch"""
    length_normalise: bool = ...
    """divide each response's term by its scored tokens"""

@dataclass
class BGPOConfig(PolicyConfig):
    """PolicyConfig and the settings of BGPO and DiffusionSampling."""
    diffusion_steps: int | None = ...
    """forward passes per canvas; None: one per token"""
    block_length: int | None = ...
    """a canvas is filled left to right in blocks of this length; None: one block"""
    remasking: Literal['low_confidence', 'random', 'entropy', 'margin'] = ...
    """what a position's turn depends on: the probability of its token (LLaDA), the entropy of its distribution, the
margin between its two likeliest tokens, or chance"""
    cfg_scale: float = ...
    """w of classifier-free guidance, u + (w + 1)(c - u)"""
    end_rule: Literal['free', 'last', 'never'] = ...
    """end tokens: free; last, revealed only when nothing else is left in the block; never"""
    sampler_rows: int = ...
    """canvases per forward pass; bounds memory"""
    cache: Literal['none', 'prefix', 'dual'] = ...
    """which keys and values are kept within a block (Fast-dLLM, arXiv 2505.22618): none; prefix, of prompt and finished
blocks; dual, of everything outside of the block. Samples come from a slightly other distribution with it"""
    confidence: float | None = ...
    """every token of at least this probability is revealed in a pass, and one in any case, in place of a fixed number
of passes (Fast-dLLM)"""
    tail: Literal['drop', 'mask', 'fill'] = ...
    """what stands behind the first end token"""
    samples: int = ...
    """n_t"""
    noise: Literal['bernoulli', 'count', 'complementary'] = ...
    """how t and hidden tokens are drawn"""
    t_floor: float = ...
    """smallest t of bernoulli noise"""
    ddof: Literal[0, 1] = ...
    """std: 1 the sample's, 0 the population's"""
    clip_low: float | None = ...
    """departure: PPO clip below 1"""
    clip_high: float | None = ...
    """departure: PPO clip above 1"""
    dual_clip: float | None = ...
    """departure: cap of the ratio where A < 0"""
    length_normalise: Literal['none', 'response', 'canvas'] = ...
    """departure: ELBO a token, of the response or of the canvas"""
    d_clamp: float | None = ...
    """departure: |d| is held at this"""

class BGPOTrainer(DiffusionTrainer):
    """BGPO: diffusion: a bound of the objective, one pass's memory for any sample size. `help(BGPOConfig)` lists its settings."""
    args: BGPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: BGPOConfig | None = ...,
        *datasets: Any,
        **named: Any,
    ) -> None: ...

@dataclass
class VRPOOLConfig(PolicyConfig):
    """PolicyConfig and the settings of VRPOOL and DiffusionSampling."""
    diffusion_steps: int | None = ...
    """forward passes per canvas; None: one per token"""
    block_length: int | None = ...
    """a canvas is filled left to right in blocks of this length; None: one block"""
    remasking: Literal['low_confidence', 'random', 'entropy', 'margin'] = ...
    """what a position's turn depends on: the probability of its token (LLaDA), the entropy of its distribution, the
margin between its two likeliest tokens, or chance"""
    cfg_scale: float = ...
    """w of classifier-free guidance, u + (w + 1)(c - u)"""
    end_rule: Literal['free', 'last', 'never'] = ...
    """end tokens: free; last, revealed only when nothing else is left in the block; never"""
    sampler_rows: int = ...
    """canvases per forward pass; bounds memory"""
    cache: Literal['none', 'prefix', 'dual'] = ...
    """which keys and values are kept within a block (Fast-dLLM, arXiv 2505.22618): none; prefix, of prompt and finished
blocks; dual, of everything outside of the block. Samples come from a slightly other distribution with it"""
    confidence: float | None = ...
    """every token of at least this probability is revealed in a pass, and one in any case, in place of a fixed number
of passes (Fast-dLLM)"""
    tail: Literal['drop', 'mask', 'fill'] = ...
    """what stands behind the first end token"""
    samples: int = ...
    """n_t; 2 for code"""
    noise: Literal['bernoulli', 'count', 'complementary'] = ...
    """how t and hidden tokens are drawn"""
    t_floor: float = ...
    """smallest t of bernoulli noise"""
    ddof: Literal[0, 1] = ...
    """std: 1 the sample's, 0 the population's"""

class VRPOOLTrainer(DiffusionTrainer):
    """VRPOOL: diffusion: ratio of ELBO estimates, in two passes. `help(VRPOOLConfig)` lists its settings."""
    args: VRPOOLConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: VRPOOLConfig | None = ...,
        *datasets: Any,
        **named: Any,
    ) -> None: ...

@dataclass
class DiffuGRPOConfig(PolicyConfig):
    """PolicyConfig and the settings of DiffuGRPO and DiffusionSampling."""
    diffusion_steps: int | None = ...
    """forward passes per canvas; None: one per token"""
    block_length: int | None = ...
    """a canvas is filled left to right in blocks of this length; None: one block"""
    remasking: Literal['low_confidence', 'random', 'entropy', 'margin'] = ...
    """what a position's turn depends on: the probability of its token (LLaDA), the entropy of its distribution, the
margin between its two likeliest tokens, or chance"""
    cfg_scale: float = ...
    """w of classifier-free guidance, u + (w + 1)(c - u)"""
    end_rule: Literal['free', 'last', 'never'] = ...
    """end tokens: free; last, revealed only when nothing else is left in the block; never"""
    sampler_rows: int = ...
    """canvases per forward pass; bounds memory"""
    cache: Literal['none', 'prefix', 'dual'] = ...
    """which keys and values are kept within a block (Fast-dLLM, arXiv 2505.22618): none; prefix, of prompt and finished
blocks; dual, of everything outside of the block. Samples come from a slightly other distribution with it"""
    confidence: float | None = ...
    """every token of at least this probability is revealed in a pass, and one in any case, in place of a fixed number
of passes (Fast-dLLM)"""
    tail: Literal['drop', 'mask', 'fill'] = ...
    """what stands behind the first end token"""
    clip_low: float = ...
    """epsilon below 1"""
    clip_high: float = ...
    """epsilon above 1"""
    p_mask_prompt: float = ...
    """probability that a prompt token is hidden"""
    scale: Literal['group', 'batch', 'none'] = ...
    """whose standard deviation divides the advantage"""
    average: Literal['token', 'response'] = ...
    """token: the released code; response: the paper's formula"""

class DiffuGRPOTrainer(DiffusionTrainer):
    """DiffuGRPO: diffusion: GRPO on a fully masked response. `help(DiffuGRPOConfig)` lists its settings."""
    args: DiffuGRPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: DiffuGRPOConfig | None = ...,
        *datasets: Any,
        **named: Any,
    ) -> None: ...

@dataclass
class CoupledGRPOConfig(PolicyConfig):
    """PolicyConfig and the settings of CoupledGRPO and DiffusionSampling."""
    diffusion_steps: int | None = ...
    """forward passes per canvas; None: one per token"""
    block_length: int | None = ...
    """a canvas is filled left to right in blocks of this length; None: one block"""
    remasking: Literal['low_confidence', 'random', 'entropy', 'margin'] = ...
    """what a position's turn depends on: the probability of its token (LLaDA), the entropy of its distribution, the
margin between its two likeliest tokens, or chance"""
    cfg_scale: float = ...
    """w of classifier-free guidance, u + (w + 1)(c - u)"""
    end_rule: Literal['free', 'last', 'never'] = ...
    """end tokens: free; last, revealed only when nothing else is left in the block; never"""
    sampler_rows: int = ...
    """canvases per forward pass; bounds memory"""
    cache: Literal['none', 'prefix', 'dual'] = ...
    """which keys and values are kept within a block (Fast-dLLM, arXiv 2505.22618): none; prefix, of prompt and finished
blocks; dual, of everything outside of the block. Samples come from a slightly other distribution with it"""
    confidence: float | None = ...
    """every token of at least this probability is revealed in a pass, and one in any case, in place of a fixed number
of passes (Fast-dLLM)"""
    tail: Literal['drop', 'mask', 'fill'] = ...
    """what stands behind the first end token"""
    clip_low: float = ...
    """epsilon below 1"""
    clip_high: float = ...
    """epsilon above 1"""
    t_low: float = ...
    """smallest share hidden"""
    t_high: float = ...
    """largest share hidden"""

class CoupledGRPOTrainer(DiffusionTrainer):
    """CoupledGRPO: diffusion: GRPO on complementary masks. `help(CoupledGRPOConfig)` lists its settings."""
    args: CoupledGRPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: CoupledGRPOConfig | None = ...,
        *datasets: Any,
        **named: Any,
    ) -> None: ...

@dataclass
class FlowSFTConfig(TrainingArguments):
    """TrainingArguments and the settings of FlowSFT."""
    times: Literal['uniform', 'logit_normal'] = ...
    """how t is drawn: evenly, or the logistic of a normal number, as SD3 was trained"""
    condition_dropout: float = ...
    """share of rows whose prompt is left out"""
    sample_steps: int = ...
    """denoising steps of the held-out images of the report"""

@dataclass
class DiffusionDPOConfig(TrainingArguments):
    """TrainingArguments and the settings of DiffusionDPO."""
    beta: float = ...
    """half of it multiplies differences of mean squared errors: the released code's, thousands where a text's is 0.1"""
    error: Literal['velocity', 'epsilon', 'v_prediction'] = ...
    """of the velocity, of the noise that it says, or of a DDPM's v"""
    times: Literal['uniform', 'logit_normal', 'ddpm'] = ...
    """how t is drawn: evenly, logit_normal as SD3 was trained, or ddpm, from the steps of a model of noise"""
    share_noise: bool = ...
    """whether both images of a pair get the same noise"""
    share_time: bool = ...
    """whether both images of a pair stand at the same time"""
    sample_steps: int = ...
    """denoising steps of the images that are made"""

@dataclass
class SePPODiffusionConfig(TrainingArguments):
    """TrainingArguments and the settings of SePPODiffusion."""
    beta: float = ...
    """half of it multiplies differences of mean squared errors: the released code's, thousands where a text's is 0.1"""
    error: Literal['velocity', 'epsilon', 'v_prediction'] = ...
    """of the velocity, of the noise that it says, or of a DDPM's v"""
    times: Literal['uniform', 'logit_normal', 'ddpm'] = ...
    """how t is drawn: evenly, logit_normal as SD3 was trained, or ddpm, from the steps of a model of noise"""
    share_noise: bool = ...
    """whether both images of a pair get the same noise"""
    share_time: bool = ...
    """whether both images of a pair stand at the same time"""
    sample_steps: int = ...
    """denoising steps of the images that are made"""
    rounds: int = ...
    """K"""
    steps_per_round: int = ...
    """optimizer steps between two checkpoints of the pool"""
    reference: Literal['initial', 'latest', 'random'] = ...
    """r ~ U{0, ..., k-1}"""
    flip: Literal['sign', 'indicator', 'none'] = ...
    """s in {+1, -1}, {1, 0} or always +1"""
    deadband: float = ...
    """tau: a winner's difference of errors this close to 0 is a tie"""
    sample_guidance: float = ...
    """guidance of the reference's samples; 1: none"""

@dataclass
class FlowGRPOConfig(FlowArguments):
    """FlowArguments and the settings of FlowGRPO and FlowSampling."""
    denoising_steps: int = ...
    """T, of the images that are trained on"""
    eval_denoising_steps: int = ...
    """without noise, for held-out images"""
    sampler: Literal['sde', 'cps'] = ...
    """how noise comes into a step"""
    noise_level: float = ...
    """a"""
    cfg_scale: float = ...
    """guidance; 1: none"""
    sampler_rows: int = ...
    """images made at a time"""
    clip: float = ...
    """epsilon on both sides of the step's ratio"""
    advantage_clip: float = ...
    """largest size of an advantage"""
    global_std: bool = ...
    """whether the whole rollout's standard deviation divides, not the group's"""
    trained_share: float = ...
    """share of the denoising steps that is trained on, the first ones, rounded down"""
    guided_training: bool = ...
    """whether guidance (rollout.cfg_scale) is part of the policy that is trained"""

class FlowGRPOTrainer(FlowTrainer):
    """FlowGRPO: images: GRPO on the steps of a flow model made random. `help(FlowGRPOConfig)` lists its settings."""
    args: FlowGRPOConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: FlowGRPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        frame: Any,
        peft_config: Any = ...,
        **named: Any,
    ) -> None: ...

@dataclass
class GRPOGuardConfig(FlowArguments):
    """FlowArguments and the settings of GRPOGuard and FlowSampling."""
    denoising_steps: int = ...
    """T, of the images that are trained on"""
    eval_denoising_steps: int = ...
    """without noise, for held-out images"""
    sampler: Literal['sde', 'cps'] = ...
    """how noise comes into a step"""
    noise_level: float = ...
    """a"""
    cfg_scale: float = ...
    """guidance; 1: none"""
    sampler_rows: int = ...
    """images made at a time"""
    clip: float = ...
    """epsilon on both sides of the normalised ratio; about s times smaller than Flow-GRPO's"""
    advantage_clip: float = ...
    """largest size of an advantage"""
    global_std: bool = ...
    """whether the whole rollout's standard deviation divides, not the group's"""
    trained_share: float = ...
    """share of the denoising steps that is trained on, the first ones, rounded down"""
    guided_training: bool = ...
    """whether guidance (rollout.cfg_scale) is part of the policy that is trained"""
    reweigh: bool = ...
    """delta = 1 / |dt|: every step pulls with the same weight"""

class GRPOGuardTrainer(FlowTrainer):
    """GRPOGuard: images: Flow-GRPO with ratios that a clip bounds at every step. `help(GRPOGuardConfig)` lists its settings."""
    args: GRPOGuardConfig
    def __init__(
        self,
        model: Any,
        reward_funcs: Any = ...,
        args: GRPOGuardConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        frame: Any,
        peft_config: Any = ...,
        **named: Any,
    ) -> None: ...

@dataclass
class SALSAConfig(PolicyConfig):
    """PolicyConfig and the settings of SALSA."""
    others: list[str] = ...
    """theta_2, ...: folders or hub names of the further SFT models"""
    weights: list[float] = ...
    """alpha, 1 - alpha: the model's own first"""
    objective: str = ...
    """what optimises the reward; the paper has PPO"""
    objective_settings: dict[str, Any] = ...
    """of that objective"""
    kl_to_start: bool = ...
    """also log the KL to the first SFT model, at the price of one more forward"""

@dataclass
class RewardModelConfig(PairScoreConfig):
    """PairScoreConfig and the settings of RewardModel."""
    center_coef: float = ...
    """weight of the squared sum of a pair's rewards; 0.01 in the paper"""
    lm_coef: float = ...
    """beta_rm: weight of the chosen answer's negative log-likelihood per token"""

@dataclass
class KTOConfig(MarkedAnswersConfig):
    """MarkedAnswersConfig and the settings of KTO."""
    good_weight: float = ...
    """lambda_D, weight of answers marked good"""
    bad_weight: float = ...
    """lambda_U, weight of answers marked bad"""
    reference_point: Literal['mismatched', 'zero'] = ...
    """z_0: estimated on answers to other prompts, or 0 (APO-zero's unpaired form), which saves two forward passes"""

@dataclass
class DPOConfig(PreferenceConfig):
    """PreferenceConfig and the settings of DPO."""

class DPOTrainer(PreferenceTrainer):
    """DPO: direct preference optimisation. `help(DPOConfig)` lists its settings."""
    args: DPOConfig
    def __init__(
        self,
        model: Any,
        ref_model: Any = ...,
        args: DPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        sampling: Any = ...,
        answer: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class IPOConfig(PreferenceConfig):
    """PreferenceConfig and the settings of IPO."""

class IPOTrainer(PreferenceTrainer):
    """IPO: a squared target instead of DPO's logistic. `help(IPOConfig)` lists its settings."""
    args: IPOConfig
    def __init__(
        self,
        model: Any,
        ref_model: Any = ...,
        args: IPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        sampling: Any = ...,
        answer: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class SimPOConfig(PreferenceConfig):
    """PreferenceConfig and the settings of SimPO."""
    margin: float = ...
    """gamma"""

class SimPOTrainer(PreferenceTrainer):
    """SimPO: no reference, token-mean rewards and a margin. `help(SimPOConfig)` lists its settings."""
    args: SimPOConfig
    def __init__(
        self,
        model: Any,
        ref_model: Any = ...,
        args: SimPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        sampling: Any = ...,
        answer: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class HingeConfig(PreferenceConfig):
    """PreferenceConfig and the settings of Hinge."""

class HingeTrainer(PreferenceTrainer):
    """Hinge: DPO's margin under a hinge. `help(HingeConfig)` lists its settings."""
    args: HingeConfig
    def __init__(
        self,
        model: Any,
        ref_model: Any = ...,
        args: HingeConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        sampling: Any = ...,
        answer: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...

@dataclass
class DRIFTConfig(PreferenceConfig):
    """PreferenceConfig and the settings of DRIFT."""
    iterations: int = ...
    """K of the main table"""
    nll_weight: float = ...
    """released configs' rpo_alpha; 0 is the paper's loss"""
    guided: bool = ...
    """False: chosen ~ pi(. | x) without the complaint, the paper's ablation"""
    compat: Literal['corrected', 'reference'] = ...
    """"reference" repeats the released code's quirks"""
    seed_data: str | None = ...
    """logged repairs for the warm start: a file with prompt, chosen, rejected"""
    seed_epochs: int = ...
    """epochs over the seed pairs, when there are any"""
    holdout_rows: int = ...
    """first rows of the file kept out of training; the release holds out 100"""
    drop_identical: bool = ...
    """pairs with equal answers; "reference" keeps them"""
    drop_empty: bool = ...
    """sampled answers without text"""
    drop_apologies: bool = ...
    """sampled answers that open by apologising, a trace of the hidden complaint"""

@dataclass
class SePPOConfig(PreferenceConfig):
    """PreferenceConfig and the settings of SePPO."""
    rounds: int = ...
    """K"""
    steps_per_round: int = ...
    """optimizer steps between two checkpoints of the pool"""
    reference: Literal['initial', 'latest', 'random'] = ...
    """r ~ U{0, ..., k-1}"""
    flip: Literal['sign', 'indicator', 'none'] = ...
    """s in {+1, -1}, {1, 0} or always +1"""
    deadband: float = ...
    """tau, nats: a winner margin this close to 0 is a tie"""

@dataclass
class IToolConfig(PreferenceConfig):
    """PreferenceConfig and the settings of ITool."""
    iterations: int = ...
    """searches and trainings in turn; the released script runs 1"""
    hardest_share: float = ...
    """of the rows with a call, and of those without, those of highest perplexity"""
    searches: int = ...
    """rounds of the tree search, a row"""
    children: int = ...
    """n, continuations per expanded node"""
    depth: int = ...
    """levels of the tree"""
    step_limit: int = ...
    """pieces joined to one fragment"""
    exploration: float = ...
    """c"""
    rollout_steps: int = ...
    """fragments written behind a leaf before it is judged"""
    min_gap: float = ...
    """least distance of the two values of a pair"""
    max_overlap: float = ...
    """most words that the two fragments may share"""
    min_value: float = ...
    """least value of a chosen fragment"""
    max_pairs: int = ...
    """of one iteration; further ones are left out and counted"""
    margin: float = ...
    """gamma"""
    compat: Literal['corrected', 'reference'] = ...
    """"reference" scores by word overlap, compares sums and keeps cut pieces, as released"""

@dataclass
class RPOConfig(PreferenceConfig):
    """PreferenceConfig and the settings of RPO."""
    eta: float = ...
    """eta; the average form wants about 0.2"""
    form: Literal['cumulative', 'average', 'token_mean'] = ...
    """which of the three losses of this name"""
    imitate: Literal['chosen', 'reference', 'dataset'] = ...
    """pi_base: whose answers are imitated"""
    imitation_data: str | None = ...
    """for imitate "dataset": a file of rows with prompt and completion"""

class RPOTrainer(PreferenceTrainer):
    """RPO: DPO with an imitation term against overoptimisation. `help(RPOConfig)` lists its settings."""
    args: RPOConfig
    def __init__(
        self,
        model: Any,
        ref_model: Any = ...,
        args: RPOConfig | None = ...,
        train_dataset: Any = ...,
        eval_dataset: Any = ...,
        *,
        sampling: Any = ...,
        answer: Any = ...,
        **trl_arguments: Any,
    ) -> None: ...
