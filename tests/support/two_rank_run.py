"""Two ranks and one server: trains ahead through it and stores what was sampled.

torchrun --nproc_per_node N tests/support/two_rank_run.py URL BATCH OUT [STALENESS]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).parent))
from datasets import Dataset
from engine_checks import JUDGED, Recording
from rollout_fakes import small_model

from posttrain.objectives.bapo import BAPO
from posttrain.rollout.base import EngineError
from posttrain.rollout.partial import to_plain
from posttrain.rollout.vllm.server import VLLMServer, servers_of
from posttrain.rollout.vllm.transfer import make_transfer
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.seam.config import PolicyConfig


def main(url: str, batch: int, out: Path, staleness: int = 1) -> int:
    args = PolicyConfig(
        output_dir=str(out.parent / "run"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        per_device_train_batch_size=batch,
        num_generations=4,
        max_completion_length=8,
        learning_rate=1e-3,
        max_steps=4,
        seed=3,
        optim="sgd",
    )
    rows = Dataset.from_list([{"prompt": f"{i}+{i % 7}="} for i in range(40)])
    trainer = Recording(
        small_model(scale=6.0).train(),
        JUDGED,
        args,
        rows,
        processing_class=character_tokenizer(),
        objective=BAPO(),
    )
    servers = servers_of([url], api_key="key", timeout_s=20.0, retries=1, retry_delay_s=0.05)
    engine = VLLMServer(
        servers, make_transfer("gloo", servers, 20.0), dtype="float32", start_timeout_s=1.0, run_id="run"
    )
    trainer.use_engine(engine, RolloutPlan(staleness=staleness))
    rank = PartialState().process_index
    found: dict[str, Any] = {}
    code = 0
    try:
        trainer.train()
    except EngineError as error:
        found["error"] = str(error)
        code = 3
    found["sampled"] = [[to_plain(one) for one in part] for part in trainer.sampled]
    found["weights"] = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    torch.save(found, out.with_name(f"{out.name}.{rank}"))
    return code


if __name__ == "__main__":
    url, batch, out, *rest = sys.argv[1:]
    code = main(url, int(batch), Path(out), *map(int, rest))
    PartialState().destroy_process_group()
    sys.exit(0 if code in (0, 3) else code)
