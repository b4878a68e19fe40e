"""Trains under Lightning, as `runs.run` asks for it."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)

from shardpipe.integrations.lightning import ShardData
from tests.integrations.runs import LOADER, Net, Trained, main

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Model(lightning.LightningModule):
    def __init__(self, out: str, kind: str) -> None:
        super().__init__()
        self.automatic_optimization = kind != "by hand"
        self.kind = kind
        self.net = Net()
        self.out = out
        self.log_of_training = Trained(out)
        self.validated: list[tuple[int, str]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log_of_training.note(batch)
        loss = self.net(**batch)["loss"]
        if not self.automatic_optimization:
            self.manual_backward(loss)
            if (batch_idx + 1) % 4 == 0 or self.trainer.is_last_batch:
                self.optimizers().step()
                self.optimizers().zero_grad()
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Cuts the first epoch short, if it is of that kind."""
        return -1 if self.kind == "cut short" and (self.current_epoch, batch_idx) == (0, 6) else None

    def on_validation_epoch_start(self) -> None:
        self.validated = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        torch.rand(3)  # what validation draws must not be seen by training
        self.validated += [(dataloader_idx, key) for key in batch.keys]
        self.log("loss", self.net(**batch)["loss"], batch_size=len(batch.keys))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            with open(f"{self.out}/validated-{self.global_rank}.txt", "a") as file:
                file.write(f"{self.global_step} {len(self.validated)} {len(set(self.validated))}\n")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)]


class SaveEverywhere(Callback):
    """Before every batch, in mid-accumulation too, and wherever else a callback may save."""

    def _save(self, trainer: Any, where: str) -> None:
        trainer.save_checkpoint(
            f"{trainer.default_root_dir}/{where}-{trainer.current_epoch}-{trainer.global_step}.ckpt"
        )

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._save(trainer, f"before-{batch_idx}")

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._save(trainer, "begin")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._save(trainer, "end")

    def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            self._save(trainer, "validating")


class Stop(Callback):
    """Ends the training after so many batches: by an error, or by the signal that a scheduler sends."""

    def __init__(self, batches: int, how: str) -> None:
        self.batches, self.how = batches, how

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches -= 1
        if not self.batches and self.how == "error":
            raise RuntimeError("stopped")
        if not self.batches:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(
    out: str,
    data: str,
    *,
    resume: str | None = None,
    save: bool = False,
    stop: tuple[int, str] | None = None,
    valid: bool = True,
    kind: str = "",
    scheduled: dict[str, int] | None = None,
    loader: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    callbacks: list[Callback] = []
    if save:
        steps = ModelCheckpoint(out, "step-{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks = [SaveEverywhere(), steps, ModelCheckpoint(out, "valid-{epoch}-{step}", save_top_k=-1)]
    if stop is not None:
        callbacks = [Stop(*stop), OnExceptionCheckpoint(out, "stopped")]
    if scheduled is not None:
        callbacks.append(GradientAccumulationScheduler({int(epoch): number for epoch, number in scheduled.items()}))
    shards = ShardData(data, valid={"one": data, "other": data} if valid else None, **{**LOADER, **(loader or {})})
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("WORLD_SIZE", 1)),
        strategy="ddp" if "WORLD_SIZE" in os.environ else "auto",
        callbacks=callbacks,
        default_root_dir=out,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        **options,
    )
    model = Model(out, kind)
    trainer.fit(model, shards, ckpt_path=resume)
    if trainer.is_global_zero:
        torch.save(model.net.state_dict(), Path(out) / "weights.pt")


if __name__ == "__main__":
    main(fit)
