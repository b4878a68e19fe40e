"""Lightning: `python lightning_ctc.py TRAIN VALID OUT [DEVICES]`; given again after a stop, it goes on."""

import sys
from typing import Any

import lightning
import torch
from ctc import CTC, collate
from lightning.pytorch.callbacks import ModelCheckpoint

from shardpipe.integrations.lightning import ShardData


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.ctc = CTC()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.ctc(**batch)["loss"]
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        real = int(batch["weights"].sum())
        self.log("valid_loss", self.ctc(**batch)["loss"], batch_size=real, sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    train, valid, out, *devices = sys.argv[1:]
    torch.manual_seed(1)
    data = ShardData(train, valid=valid, batch_seconds=20, seed=1, collate=collate)
    trainer = lightning.Trainer(
        max_epochs=2,
        accumulate_grad_batches=4,
        devices=int(devices[0]) if devices else "auto",
        callbacks=[ModelCheckpoint(out, every_n_train_steps=5, save_last=True)],
        default_root_dir=out,
        logger=False,
    )
    trainer.fit(Model(), data, ckpt_path="last")
    trainer.save_checkpoint(f"{out}/final.ckpt", weights_only=True)
