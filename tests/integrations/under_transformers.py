"""Trains under transformers' Trainer, as `runs.run` asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from shardpipe import ShardLoader
from shardpipe.integrations.transformers import ShardTrainerMixin
from tests.integrations.runs import LOADER, Net, Trained, main


class StopAccumulating(TrainerCallback):
    """Saves and stops within an accumulation, as a callback that watches a signal may."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = control.should_training_stop = state.global_step == self.step


def fit(
    out: str,
    data: str,
    *,
    resume: str | None = None,
    save: bool = False,
    stop: int | None = None,
    measure: bool = False,
    loader: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    log = Trained(out)

    class ShardTrainer(ShardTrainerMixin, Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            log.note(inputs)
            return super().training_step(model, inputs, *args, **kwargs)

    arguments = TrainingArguments(
        out,
        eval_steps=2,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        label_names=["lengths"],
        include_num_input_tokens_seen="non_padding",
        **{
            "eval_strategy": "steps",
            "learning_rate": 1e-2,
            "save_strategy": "steps" if save else "no",
            "save_steps": 1,
            **options,
        },
    )
    metrics = {"compute_metrics": lambda prediction: {"samples": len(prediction.label_ids)}} if measure else {}
    validation = {name: ShardLoader(data, batch_size=7, repeat=False) for name in ("one", "other")}
    trainer = ShardTrainer(
        Net(),
        arguments,
        train_loader=ShardLoader(data, **{**LOADER, **(loader or {})}),
        eval_loader=validation,
        **metrics,
        callbacks=[] if stop is None else [StopAccumulating(stop)],
    )
    result = trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), Path(out) / "weights.pt")
        state = trainer.state
        counts = {
            "epoch": state.epoch,
            "steps": state.global_step,
            "tokens": state.num_input_tokens_seen,
            "samples": round(result.metrics["train_samples_per_second"] * result.metrics["train_runtime"]),
            "measured": [log["eval_one_samples"] for log in state.log_history if "eval_one_samples" in log],
            "evaluated": [log["eval_one_loss"] for log in state.log_history if "eval_one_loss" in log],
        }
        (Path(out) / "counts.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    main(fit)
