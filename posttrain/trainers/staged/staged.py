"""Training in stages: sample with the policy, make pairs, train on them, save, again. Everything on disk.

    OUTPUT/run.json                     what the run was started with, compared on resume
    OUTPUT/base/                        the base model of an adapter run
    OUTPUT/policies/000, 001, ...       the policy before the first stage, after it, ...
    OUTPUT/stages/000/samples-*.jsonl   what was sampled, appended batch by batch
    OUTPUT/stages/000/pairs.jsonl, counts.json
    OUTPUT/stages/000/train/            the stage's trainer checkpoints, removed when the stage is done

Each step of a stage can be repeated from what the step before left on disk, and a sample depends on its
seed alone, so a run killed anywhere continues with the numbers it would have had.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from datasets import Dataset
from peft import PeftConfig, get_peft_model
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from posttrain.preferences.base import PairLoss
from posttrain.process.phases import PHASES
from posttrain.references.checkpoint_pool import ReferencePool
from posttrain.rollout.base import Sampling, stable_seed
from posttrain.trainers.engines.answers import EngineGenerator, Generator, stop_ids, transformers_engine_of
from posttrain.trainers.models.adapters import check_adapter
from posttrain.trainers.models.policy_folder import (
    holds_adapter,
    load_adapter_into,
    load_dense,
    load_policy,
    save_policy,
)
from posttrain.trainers.preference.pair_rows import PairCounts
from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer
from posttrain.trainers.reporting.run_report import reports_of
from posttrain.trainers.seam.faults import NotUnderThisEngine
from posttrain.trainers.seam.launch_check import check_engine
from posttrain.trainers.seam.stopping import StopOnSignal
from posttrain.trainers.staged.disk import (
    check_same_run,
    drop_partial_line,
    fingerprint,
    read_samples,
    write_json,
    write_lines,
)
from posttrain.trainers.staged.stage_callbacks import InRun
from posttrain.trainers.staged.stage_start import keep_engine, standing_checkpoint

Pair = dict[str, Any]
"""prompt, chosen, rejected: texts, or lists of messages."""

_RUN = "run.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage: its number from 0, its name in logs, and where it works."""

    number: int
    name: str
    folder: Path


class StagedTrainer:
    """Base of DRIFT, SePPO and iTool. To a session it looks like a trainer: `train`, `state`, `row_counts`, callbacks;
    `model` and `accelerator` are those of the stage that is training.

    model       the policy to start from, in memory or a local path or hub name; it is saved into the run's folder
                and from then on only read from there
    generator   answers of a policy folder; by default transformers in this process
    sampling    how it samples; its stop tokens are filled in
    generation_batch_size  prompts between two writes of what was sampled
    """

    def __init__(
        self,
        model: Any,
        args: PreferenceConfig,
        method: PairLoss,
        processing_class: PreTrainedTokenizerBase,
        *,
        sampling: Sampling,
        peft_config: PeftConfig | None = None,
        generator: Generator | None = None,
        generation_batch_size: int = 64,
        callbacks: Iterable[TrainerCallback] = (),
    ) -> None:
        if args.sync_ref_model:
            raise ValueError(
                f"{type(self).__name__}: sync_ref_model has no place here: each stage has its reference"
            )
        if is_deepspeed_zero3_enabled():
            raise NotUnderThisEngine(
                f"{type(self).__name__}: under ZeRO-3 no process holds a policy that could be saved whole and sampled "
                "from between stages; use FSDP2, ZeRO-2 or DDP"
            )
        check_adapter(model, peft_config)
        self.args = args
        self.method = method
        self.processing_class = processing_class
        self.peft_config = peft_config
        self.output_dir = Path(str(args.output_dir))
        self.ranks = PartialState()
        self.state = TrainerState()
        self._training: PreferenceTrainer | None = None
        self.eval_dataset = None
        self.train_dataset = None  # the rows are compared by the run itself
        self.row_counts: Any = None
        self.pool = ReferencePool(self.output_dir / "policies", seed=args.seed)
        self.generation_batch_size = generation_batch_size
        self.sampling = sampling
        self.callbacks: list[TrainerCallback] = [
            *[make() for make in get_reporting_integration_callbacks(args.report_to)],
            *callbacks,
        ]
        self._unwanted: list[type[TrainerCallback]] = []
        self._model: Any = model
        self._generator = generator

    # What a method defines

    def stage_names(self) -> list[str]:
        raise NotImplementedError  # the method's stages, in order

    def rows(self) -> Iterable[Any]:
        raise NotImplementedError  # what the run trains on, as plain data: compared on resume

    def make_pairs(self, stage: Stage) -> tuple[list[Pair], PairCounts]:
        raise NotImplementedError  # samples, if the stage needs any, and the pairs made of them

    def reference(self, stage: Stage) -> Path:
        """The policy the stage is compared with."""
        return self.pool.path(stage.number)

    def stage_arguments(self, stage: Stage, args: PreferenceConfig) -> None:
        """Changes the stage's copy of the arguments in place."""

    def planned_steps(self) -> int:
        raise NotImplementedError  # optimizer steps of the whole run, for progress and schedules

    # The run

    def train(self, resume_from_checkpoint: str | bool | None = None) -> None:
        """Runs the stages that are not done. `resume_from_checkpoint` True, or the run's own folder, continues one."""
        if isinstance(resume_from_checkpoint, str) and not Path(resume_from_checkpoint).samefile(
            self.output_dir
        ):
            raise ValueError(
                f"a run in stages is resumed as a whole: give {self.output_dir}, not {resume_from_checkpoint}"
            )
        reports = reports_of(self.callbacks)
        for report in reports:
            report.bind(self)
        try:
            self._run_stages(resume=bool(resume_from_checkpoint))
        finally:
            for report in reports:
                report.close()

    def _run_stages(self, *, resume: bool) -> None:
        self._open(resume=resume)
        names = self.stage_names()
        self.state.max_steps = self.planned_steps()
        done = len(self.pool) - 1
        self.state.global_step = self._steps_before(done)
        for number in range(done, len(names)):
            stage = Stage(number, names[number], self.output_dir / "stages" / f"{number:03d}")
            last = number == len(names) - 1
            if not self._run_stage(stage, first=number == done, last=last):
                return
            if not last and self._asked_to_stop():  # with the stage's last step, or after it
                return
        self.state.max_steps = self.state.global_step

    def _asked_to_stop(self) -> bool:
        """The same on every rank, though a signal after the stage's last step may have reached only some."""
        stops = [callback for callback in self.callbacks if isinstance(callback, StopOnSignal)]
        return any([stop.agreed() for stop in stops])  # a list: no rank leaves one out

    def _run_stage(self, stage: Stage, *, first: bool, last: bool) -> bool:
        """False when training was asked to stop before the stage was done."""
        stage.folder.mkdir(parents=True, exist_ok=True)
        pairs, counts = self.make_pairs(stage)
        if isinstance(self._generator, EngineGenerator):
            self._generator.close()  # training needs the memory
        if not pairs:
            raise ValueError(f"{stage.name}: no pair to train on: {counts.in_words()}")
        trainer = self._stage_trainer(stage, pairs, counts, InRun(self.state, first=first, last=last))
        self._training = trainer
        try:
            return self._train_stage(stage, trainer, pairs)
        finally:
            self._training = None
            del trainer
            gc.collect()  # trainers hold themselves in cycles; the next stage's engine needs their memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _train_stage(self, stage: Stage, trainer: PreferenceTrainer, pairs: list[Pair]) -> bool:
        if self.ranks.is_main_process:
            write_lines(stage.folder / "pairs.jsonl", pairs)
            write_json(stage.folder / "counts.json", {"stage": stage.name, **asdict(self.row_counts)})
        checkpoint, complete = standing_checkpoint(trainer)
        if checkpoint is not None and complete:
            # Killed between the last step and the saved policy; asked to train, transformers might add a step.
            trainer._load_from_checkpoint(checkpoint)
            trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.state.global_step < trainer.state.max_steps:
            self.state.global_step += trainer.state.global_step
            return False
        self._finish_stage(stage, trainer)
        return True

    def _stage_trainer(
        self, stage: Stage, pairs: list[Pair], counts: PairCounts, run: InRun
    ) -> PreferenceTrainer:
        args = copy.copy(self.args)
        args.output_dir = str(stage.folder / "train")
        args.report_to = []
        args.seed = self.args.seed + stage.number
        args.data_seed = None
        keep_engine(args)
        self.stage_arguments(stage, args)
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        start, reference = self.pool.path(stage.number), self.reference(stage)
        model = load_policy(start, base=self.base, trainable=True)
        adapter = is_peft_model(model)
        trainer = self.trainer_class()(
            model,
            None if adapter else load_policy(reference),
            args,
            Dataset.from_list(pairs),
            method=self.method,
            processing_class=self.processing_class,
            callbacks=[run.around(callback) for callback in self.callbacks],
        )
        check_engine(trainer.accelerator)
        if adapter and reference != start:
            load_adapter_into(self._unwrapped(trainer), reference, "ref")
        for unwanted in self._unwanted:
            trainer.remove_callback(unwanted)
        self.prepare_trainer(stage, trainer)
        self.row_counts = trainer.row_counts.after(counts.rows_in, counts.dropped)
        self.row_counts.check()
        return trainer

    def trainer_class(self) -> type[PreferenceTrainer]:
        return PreferenceTrainer

    def prepare_trainer(self, stage: Stage, trainer: PreferenceTrainer) -> None:
        """The last word before a stage trains."""

    def leave_trainer(self, stage: Stage, trainer: PreferenceTrainer) -> None:
        """What a method keeps of a trainer whose stage is done."""

    def _finish_stage(self, stage: Stage, trainer: PreferenceTrainer) -> None:
        """Saves the policy, then forgets the trainer's checkpoints."""
        self.leave_trainer(stage, trainer)
        staging = self.pool.staging()
        trainer.save_model(str(staging))
        self.ranks.wait_for_everyone()
        self.state.global_step += trainer.state.global_step
        if self.ranks.is_main_process:
            self.processing_class.save_pretrained(staging)
            shutil.rmtree(staging / "ref", ignore_errors=True)
            write_json(stage.folder / "done.json", {"steps": trainer.state.global_step})
            self.pool.publish()
            shutil.rmtree(str(trainer.args.output_dir), ignore_errors=True)
        self.ranks.wait_for_everyone()

    # Start and resume

    def _open(self, *, resume: bool) -> None:
        """Notes what this run is and saves the starting policy, or checks that the folder holds this very run."""
        identity = {
            "method": type(self.method).__name__,
            "settings": asdict(self.method),  # type: ignore[call-overload]  # every pair loss is a dataclass
            "sampling": asdict(self.sampling),
            "beta": self.args.beta,
            "seed": self.args.seed,
            "adapter": None if self.peft_config is None else str(self.peft_config.peft_type),
            "rows": fingerprint(self.rows()),
        }
        identity = json.loads(json.dumps(identity))
        path = self.output_dir / _RUN
        if resume:
            check_same_run(path, identity)
        elif path.exists():
            raise ValueError(f"{self.output_dir} already holds a run; resume it, or choose another folder")
        fresh = len(self.pool) == 0
        self.ranks.wait_for_everyone()  # all have looked before one writes
        if self.ranks.is_main_process and not path.exists():
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_json(path, identity)
        if fresh:
            self._save_start()
        self._model = None  # from here on the folder's copy is the only one

    def _save_start(self) -> None:
        if not self.ranks.is_main_process:
            self.ranks.wait_for_everyone()
            return
        model: Any = self._model
        if isinstance(model, str):
            model = load_dense(model, dtype="float32")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.peft_config is not None:
            save_policy(model, self.processing_class, self.base)
            set_seed(self.args.seed)
            model = get_peft_model(model, self.peft_config)
            self.pool.add(lambda folder: save_policy(model, self.processing_class, folder))
        elif is_peft_model(model):
            save_policy(model, self.processing_class, self.pool.staging())
            save_policy(model.unload(), self.processing_class, self.base)
            self.pool.publish()
        else:
            self.pool.add(lambda folder: save_policy(model, self.processing_class, folder))
        self.ranks.wait_for_everyone()

    @property
    def base(self) -> Path:
        """The base model of an adapter run; unused in a run of whole models."""
        return self.output_dir / "base"

    def _steps_before(self, done: int) -> int:
        files = [self.output_dir / "stages" / f"{n:03d}" / "done.json" for n in range(done)]
        return sum(json.loads(file.read_text(encoding="utf-8"))["steps"] for file in files)

    # Sampling

    @property
    def generator(self) -> Generator:
        if self._generator is None:
            device = self.ranks.device if not self.args.use_cpu else torch.device("cpu")
            engine_of = transformers_engine_of(self.processing_class, base=self.base, device=device)
            self._generator = EngineGenerator(self.processing_class, engine_of)
        return self._generator

    @cached_property
    def _stopping(self) -> Sampling:
        """The sampling with the tokens that end an answer, where none were given."""
        if self.sampling.stop_token_ids:
            return self.sampling
        start = self.pool.path(0)
        folder = self.base if holds_adapter(start) else start
        config = (
            GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").exists() else None
        )
        return replace(self.sampling, stop_token_ids=stop_ids(self.processing_class, config))

    def sample(self, stage: Stage, policy: Path, prompts: list[list[int]]) -> list[str]:
        """One answer per prompt, batches shared out over ranks. Those on disk from before a kill are taken over."""
        file = stage.folder / f"samples-{self.ranks.process_index}.jsonl"
        drop_partial_line(file)
        found = read_samples(stage.folder)
        self.ranks.wait_for_everyone()  # all have read the same before one of them writes
        missing = [row for row in range(len(prompts)) if row not in found]
        if missing and isinstance(self.generator, EngineGenerator):
            self.generator.open(policy)  # on a rank without rows too
        if missing and self.ranks.is_main_process:
            logger.info("%s: sampling %d answers", stage.name, len(missing))
        first_seed = stable_seed(type(self.method).__name__, self.args.seed, stage.number)
        batches = range(0, len(prompts), self.generation_batch_size)
        mine = batches[self.ranks.process_index :: self.ranks.num_processes]
        done, total = 0, sum(min(self.generation_batch_size, len(prompts) - start) for start in mine)
        with (
            file.open("a", encoding="utf-8") as out,
            PHASES.within(f"{stage.name}: sampling", total) as phase,
        ):
            for start in mine:
                rows = list(range(start, min(start + self.generation_batch_size, len(prompts))))
                if all(row in found for row in rows):
                    continue
                sampling = replace(self._stopping, seed=first_seed + start)
                answers = self.generator(policy, [prompts[row] for row in rows], sampling)
                lines = [
                    json.dumps({"row": row, "text": text}) for row, text in zip(rows, answers, strict=True)
                ]
                out.write("\n".join(lines) + "\n")
                out.flush()
                os.fsync(out.fileno())
                done += len(rows)
                phase.at(done)
        self.ranks.wait_for_everyone()
        found = read_samples(stage.folder)
        return [found[row] for row in range(len(prompts))]

    # What a session asks of a trainer

    @property
    def accelerator(self) -> Any:
        """The training stage's; between stages, what is known of the processes."""
        return self.ranks if self._training is None else self._training.accelerator

    @property
    def model(self) -> Any:
        """The model in training; RuntimeError between stages, when the policy lies on disk only."""
        if self._training is None:
            raise RuntimeError(
                f"{type(self).__name__}: no stage is training; the policies lie in {self.pool.folder}"
            )
        return self._training.model

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    def remove_callback(self, callback: type[TrainerCallback]) -> None:
        self.callbacks = [c for c in self.callbacks if not isinstance(c, callback)]
        self._unwanted.append(callback)

    def save_model(self, folder: str) -> None:
        """Copies the newest policy; of an adapter run, the adapter. Ranks do not wait for the one that copies."""
        if self.ranks.is_main_process:
            shutil.copytree(self.pool.path(len(self.pool) - 1), folder, dirs_exist_ok=True)

    @staticmethod
    def _unwrapped(trainer: PreferenceTrainer) -> Any:
        return trainer.accelerator.unwrap_model(trainer.model)
