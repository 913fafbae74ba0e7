"""The sections of a recipe, one strict model each. No torch.

A section belongs to the room that reads it; a new key is one typed line here. `train` has its own file
(train_options.py), `objective` is read from the method's settings (settings.py).
"""

from __future__ import annotations

import re
import string
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ConfigDict, model_validator

Count = Annotated[int, Ge(1), Le(10**9)]
Positive = Annotated[float, Gt(0), Le(1e9)]
NotNegative = Annotated[float, Ge(0), Le(1e9)]
Share = Annotated[float, Gt(0), Le(1)]
Seconds = Annotated[float, Gt(0), Le(1e7)]  # four months; beyond, waiting calls overflow
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]  # what NumPy takes
Text = Annotated[str, MinLen(1)]


Temperature = Annotated[float, Ge(0.01), Le(100)]
"""Below, logits over it overflow; above, every token is as likely as any other."""


class Section(BaseModel):
    """Unknown keys are errors, values are not coerced (recipe_loader.Loader), nothing changes once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def changed(self) -> set[str]:
        """Keys that were written and say something else than the default."""
        return {k for k in self.model_fields_set if self.__dict__[k] != type(self).model_fields[k].default}


# ---------------------------------------------------------------------------------------------------- model


class ScratchSection(Section):
    """A small Llama-shaped model with random weights and one token a character; nothing is downloaded."""

    architecture: Literal["llama"] = "llama"
    hidden_size: Annotated[int, Ge(1), Le(2**15)] = 128
    layers: Annotated[int, Ge(1), Le(1000)] = 2
    heads: Annotated[int, Ge(1), Le(1000)] = 4
    intermediate_size: Annotated[int, Ge(1), Le(2**18)] | None = None  # None: 3 * hidden_size
    tokenizer: Literal["characters"] = "characters"
    alphabet: str = string.printable[:95] + "\n"
    max_positions: Annotated[int, Ge(1), Le(2**24)] = 128
    seed: Seed = 0

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be an even multiple of heads ({self.heads}): "
                "rotary positions need an even head size"
            )
        if len(set(self.alphabet)) != len(self.alphabet) or not self.alphabet:
            raise ValueError("alphabet must hold each character once, and at least one")
        return self


class PeftSection(Section):
    """LoRA; names are peft.LoraConfig's without the prefix `lora_`."""

    r: Annotated[int, Ge(1), Le(2**15)] = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Ge(0), Le(1)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[list[Text], MinLen(1)] = "all-linear"
    modules_to_save: list[Text] = []
    rslora: bool = False
    dora: bool = False


class MaskSection(Section):
    """Only read by masked-diffusion methods: what a checkpoint may not say about itself."""

    token: Text | None = None  # the mask; None: the tokenizer's mask token
    logit_shift: bool | None = None  # position i-1 predicts token i; None: the checkpoint's, or its type's
    end_tokens: list[Text] = []  # besides the tokenizer's end token


class ModelSection(Section):
    path: Text | None = None
    scratch: ScratchSection | None = None
    revision: Text | None = None
    tokenizer: Text | None = None  # None: the model's own
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    attn_implementation: Text | None = None
    trust_remote_code: bool = False
    chat_template: Text | None = None  # a .jinja file, in place of the tokenizer's own; saved with the model
    response_template: Text | None = (
        None  # a .json file: how an answer is read, tool calls too; None: the tokenizer's
    )
    peft: PeftSection | None = None
    quantization: Literal["nf4"] | None = None  # of the frozen base, linear maps in 4 bits (QLoRA); with peft
    mask: MaskSection | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give exactly one of 'path' (a folder or hub name) and 'scratch'")
        if self.scratch is not None:
            sourced = ("revision", "tokenizer", "attn_implementation", "trust_remote_code")
            for name in (*sourced, "peft", "quantization", "mask"):
                if name in self.changed():
                    raise ValueError(f"'{name}' has no effect on a model from scratch; remove it")
        return self


# -------------------------------------------------------------------------------------------------- rewards


class RewardSection(Section):
    files_of: ClassVar[dict[str, tuple[str, ...]]] = {  # built-in rewards -> args that name files or folders
        "drift_penalty": ("reference",),
        "clip_score": ("folder", "processor"),
        "pickscore": ("folder", "processor"),
        "policy_precedents": ("policy", "precedents"),
    }
    name: Text | None = None  # math_answer | package.module:function | path/file.py:function
    model: Text | None = None  # folder or hub name of a reward model, in place of a function
    label: Text | None = None  # metric name; None: the function's, or the model folder's run
    weight: Annotated[float, Ge(-1e6), Le(1e6)] = 1.0
    args: dict[str, Any] = {}
    timeout_s: Seconds = 30.0
    on_error: Literal["raise", "skip"] = "raise"
    completions_as: Literal["text", "messages", "images"] | None = (
        None  # None: as the function's annotation says, else text
    )
    batch_size: Count = 16  # of a model: rows of one forward
    max_length: Count | None = (
        None  # of a model: longer texts lose their start; None: what the model was made for
    )
    device: Text | None = None  # of a model: None is the trainer's
    server: Text | None = None  # of a model: http://host:port of the server that runs it
    api: Literal["vllm", "sglang", "tei"] | None = None  # whose server; None: it is asked
    retries: Annotated[int, Ge(0), Le(1000)] = 4  # of a call to that server
    api_key_env: Text = "VLLM_API_KEY"  # variable with that server's key

    @model_validator(mode="after")
    def _function_or_model(self) -> Self:
        if (self.name is None) == (self.model is None):
            raise ValueError("give exactly one of 'name' (a function) and 'model' (a reward model)")
        of_servers = ("api", "retries", "api_key_env")
        if self.model is None:
            what, idle = "a function", ("batch_size", "max_length", "device", "server", *of_servers)
        elif self.server is None:
            what, idle = "a reward model", ("args", "timeout_s", "on_error", "completions_as", *of_servers)
        else:
            what, idle = "a reward model on a server", ("args", "on_error", "completions_as", "device")
        for key in idle:
            if key in self.changed():
                raise ValueError(f"'{key}' has no effect on {what}; remove it")
        return self


# ------------------------------------------------------------------------------------ tools and environment


class ToolSection(Section):
    """A function that the model may call; in a recipe also its name alone."""

    name: Text  # python | search | package.module:function | path/file.py:function
    args: dict[Text, Any] = {}  # parameters that the model does not see
    timeout_s: Seconds = 10.0  # of one call
    max_characters: Count = 4000  # of an answer; the rest is cut

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class EnvironmentSection(Section):
    """A class whose public methods the model may call, an object a response."""

    name: Text  # package.module:Class | path/file.py:Class
    args: dict[Text, Any] = {}  # its constructor's
    timeout_s: Seconds = 10.0  # of one call
    max_characters: Count = 4000  # of an answer; the rest is cut


# -------------------------------------------------------------------------------------------------- rollout


class VLLMSection(Section):
    """Only read with a vLLM engine; rollout/engine_options.py says which engine reads which key."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: what the trainer computes in
    proof_limit: Positive | None = None  # nats; None: by dtype, see rollout/options.PROOF_LIMITS
    # colocated
    gpu_memory_utilization: Share = 0.3
    max_model_length: Count | None = None  # None: the model's own limit
    max_num_seqs: Count | None = None
    enforce_eager: bool = False
    sleep: bool = False
    # server
    servers: list[Text] = ["http://127.0.0.1:8000"]
    api_key_env: Text = "VLLM_API_KEY"
    sync: Literal["nccl", "gloo", "disk"] | None = None  # None: nccl where the trainer has a GPU, else gloo
    sync_dir: Text | None = None  # a folder that trainer and servers see, for sync: disk
    sync_host: Text | None = None  # the trainer's address as the servers see it; None: found from the route
    timeout_s: Seconds = 900.0
    start_timeout_s: Seconds = 240.0
    retries: Annotated[int, Ge(0), Le(1000)] = 4
    retry_delay_s: Seconds = 1.0


class ResampleSection(Section):
    """Dynamic sampling; posttrain/rollout/resample.py says what the keys decide."""

    until: Literal["unequal", "pass_rate"] = "unequal"
    low: Annotated[float, Ge(-1e9), Le(1e9)] = 0.0  # of a group's mean reward, exclusive
    high: Annotated[float, Ge(-1e9), Le(1e9)] = 1.0
    max_rounds: Annotated[int, Ge(2), Le(1000)] = 4  # the first one included
    on_short: Literal["train", "refill", "stop"] = "train"

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.high <= self.low:
            raise ValueError(
                f"'low' {self.low:g} must be below 'high' {self.high:g}: no group lies between them"
            )
        if self.until == "unequal" and (idle := {"low", "high"} & self.changed()):
            raise ValueError(
                f"'{sorted(idle)[0]}' does nothing with until: unequal; write until: pass_rate, or remove it"
            )
        return self


class LoggedSection(Section):
    """Answers of the data in the groups; posttrain/rollout/logged.py says what the keys decide."""

    column: Text
    share: Annotated[float, Gt(0), Lt(1)] = 0.25  # of the places of a group
    treatment: Literal["none", "behaviour", "shaped"] = "none"
    logprobs_column: Text | None = None  # for treatment: behaviour
    gamma: Annotated[float, Gt(0), Le(1)] = 0.1  # of treatment: shaped

    @model_validator(mode="after")
    def _treated(self) -> Self:
        if self.treatment == "behaviour" and self.logprobs_column is None:
            raise ValueError(
                "treatment: behaviour needs logprobs_column, the log-prob of each token under what wrote the answer"
            )
        if self.treatment != "behaviour" and self.logprobs_column is not None:
            raise ValueError(
                f"'logprobs_column' does nothing with treatment: {self.treatment}; write behaviour, or remove it"
            )
        if self.treatment != "shaped" and "gamma" in self.changed():
            raise ValueError(
                f"'gamma' does nothing with treatment: {self.treatment}; write shaped, or remove it"
            )
        return self


class RolloutSection(Section):
    """Sampling has one set of names for all engines; rollout/engine_options.py says what an engine lacks."""

    engine: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    group_size: Annotated[int, Ge(1), Le(2**16)] = 8  # G
    max_new_tokens: Annotated[int, Ge(1), Le(2**24)] = 512  # with tools: of all turns, their answers included
    max_turns: Annotated[int, Ge(2), Le(1000)] = 8  # of the model in one response, where it has tools
    temperature: Temperature = 1.0
    top_p: Share = 1.0
    top_k: Annotated[int, Ge(0), Le(2**24)] = 0
    min_p: Annotated[float, Ge(0), Le(1)] | None = None
    repetition_penalty: Annotated[float, Ge(0.01), Le(100)] = 1.0
    eval_temperature: Annotated[float, Ge(0), Le(100)] = 0.0  # 0: greedy
    staleness: Annotated[int, Ge(0), Le(1000)] = 0  # rollouts generated ahead of training
    partial_budget: Count | None = None  # tokens a completion may get a rollout before it is continued later
    importance_correction: (
        Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] | None
    ) = None  # None: sampling log-probs are the old log-probs
    importance_clip_max: Positive | None = 3.0
    importance_clip_min: NotNegative | None = None
    resample: ResampleSection | None = None  # None: every rollout is trained on as it comes
    logged: LoggedSection | None = None  # None: every response is sampled
    vllm: VLLMSection | None = None


class DiffusionRolloutSection(RolloutSection):
    """Masked-diffusion methods; see rollout/masked/sampler_options.py for what the keys mean."""

    engine: Literal["masked_diffusion"] = "masked_diffusion"  # type: ignore[assignment]  # one engine, another set
    diffusion_steps: Count | None = None
    block_length: Count | None = None
    remasking: Literal["low_confidence", "random", "entropy", "margin"] = "low_confidence"
    cfg_scale: Annotated[float, Ge(0), Le(1000)] = 0.0
    end_rule: Literal["free", "last", "never"] = "free"
    sampler_rows: Count = 64
    cache: Literal["none", "prefix", "dual"] = "none"  # keys and values kept within a block
    confidence: Annotated[float, Gt(0), Le(1)] | None = (
        None  # reveal every token of at least this probability
    )


# --------------------------------------------------------------------------------------------------- output


def run_name_fault(name: str) -> str | None:
    """Why a run cannot have this name, or None: its folder must lie below output.dir and be no hidden one."""
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ".." in parts:
        return f"'name' {name!r} leaves output.dir; write a plain name, and the folder above it in 'dir'"
    if any(not part.strip() or part.startswith(".") for part in parts):
        return f"'name' {name!r}: each part of it must be there and not begin with a dot; write a plain name"
    if not name.isprintable() or name != name.strip():
        return (
            f"'name' {name!r} holds spaces at an end or characters that cannot be printed; write a plain name"
        )
    if any(len(part.encode()) > 200 for part in parts):
        return f"'name' is {len(name.encode())} bytes long; 200 a part are what folders beside it leave"
    return None


_REPO = re.compile(r"(?:[\w.-]+/)?[\w.-]+", re.ASCII)


class HubSection(Section):
    """Where the saved model goes at the end of the run, beside its folder."""

    repo: str  # user/name, or a name of one's own
    private: bool = True
    revision: Text | None = None  # branch; None: main

    @model_validator(mode="after")
    def _name(self) -> Self:
        last = self.repo.rpartition("/")[2]
        bad = ".." in self.repo or "--" in self.repo or last[:1] in "-." or last[-1:] in "-."
        if not _REPO.fullmatch(self.repo) or bad or len(self.repo) > 96 or last.endswith(".git"):
            raise ValueError(
                f"'repo' {self.repo!r} is no name the hub takes; write user/name, of letters, digits, '-', '_' and '.'"
            )
        return self


class OutputSection(Section):
    name: str = ""  # "": the recipe's file name
    dir: Text = "runs"
    overwrite: bool = False  # false: a run folder that exists is only continued with --resume
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = ["tensorboard"]
    logging_steps: Count = 1
    save_steps: Count = 100
    save_total_limit: Count | None = 2
    log_completions: bool = True
    record: list[Count] = []  # optimizer steps whose micro-batches `posttrain replay` can read
    hub: HubSection | None = None

    @model_validator(mode="after")
    def _names(self) -> Self:
        if self.name and (fault := run_name_fault(self.name)) is not None:
            raise ValueError(fault)
        return self

    @property
    def run_dir(self) -> str:
        return f"{self.dir}/{self.name}"


# ----------------------------------------------------------------------------------------------- evaluation


class EvaluationSection(Section):
    """Benchmarks at checkpoints of a training run. What is None stays as the benchmark's YAML says.

    every       optimizer steps between evaluations; the last step is always evaluated
    at_start    evaluate before the first step too: the line every curve starts from
    benchmarks  names of built-in benchmarks, or paths of YAMLs
    data        folder of their files; None: $POSTTRAIN_DATA, else the hub
    limit       the first so many problems of each
    """

    every: Count
    benchmarks: list[Text]
    at_start: bool = True
    data: Text | None = None
    limit: Count | None = None
    samples: Annotated[int, Ge(1), Le(2**16)] | None = None
    max_new_tokens: Annotated[int, Ge(1), Le(2**24)] | None = None
    temperature: Annotated[float, Ge(0), Le(100)] | None = None
    batch_size: Annotated[int, Ge(1), Le(2**20)] = 32
    seed: Seed = 0

    def is_due(self, step: int, last: bool = False) -> bool:
        return last or (step == 0 and self.at_start) or (step > 0 and step % self.every == 0)
