"""What a trainer says of itself while a step lasts: forward 3 of 8, backward, measuring, saving (process/phases.py)."""

from __future__ import annotations

from typing import Any

from posttrain.process.phases import PHASES
from posttrain.trainers.reporting.run_report import reports_of


class AnnouncedSteps:
    """Mixin before a `transformers.Trainer`, the first of its kind: it only speaks."""

    _micro_batches_done = 0

    def train(self, *arguments: Any, **named: Any) -> Any:
        """As upstream's; a `RunReport` among the callbacks learns whose run it keeps."""
        reports = reports_of(self.callback_handler.callbacks)  # type: ignore[attr-defined]  # the host's
        for report in reports:
            report.bind(self)
        try:
            return super().train(*arguments, **named)  # type: ignore[misc]
        finally:
            for report in reports:
                report.close()

    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        if not self.model.training:  # type: ignore[attr-defined]  # the host's
            return super().compute_loss(*arguments, **named)  # type: ignore[misc]
        accumulation = self.args.gradient_accumulation_steps  # type: ignore[attr-defined]
        # the loop's own count is lower in an epoch's last step, and not there before training
        total = vars(self).get("current_gradient_accumulation_steps", accumulation)
        number = self._micro_batches_done + 1
        PHASES.say("forward", number, total)
        loss = super().compute_loss(*arguments, **named)  # type: ignore[misc]
        self._micro_batches_done = number % total
        PHASES.say("backward", number, total)
        return loss

    def evaluation_loop(self, *arguments: Any, **named: Any) -> Any:
        # the word alone: the count of batches comes with each of them (callbacks.py)
        with PHASES.within("measuring"):
            return super().evaluation_loop(*arguments, **named)  # type: ignore[misc]

    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        with PHASES.within("saving a checkpoint"):
            super()._save_checkpoint(*arguments, **named)  # type: ignore[misc]
