"""Trains in a loop under an Accelerator, as `runs.run` asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from shardpipe import ShardLoader
from shardpipe.integrations.accelerate import prepare
from tests.integrations.runs import LOADER, Net, Trained, main


def fit(
    out: str,
    data: str,
    *,
    epochs: int,
    accumulate: int = 1,
    resume: str | None = None,
    save: bool = False,
    pauses: int | None = None,
    loader: dict[str, Any],
) -> None:
    """The loop breaks off after every so many batches as `pauses` says, and goes on."""
    log = Trained(out)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
    model, optimizer, scheduler = accelerator.prepare(net, optimizer, scheduler)
    training = prepare(accelerator, ShardLoader(data, **{**LOADER, **loader}))
    validation = prepare(accelerator, ShardLoader(data, batch_size=4, repeat=False))
    if resume is not None:
        accelerator.load_state(resume)
    number = 0
    while training.loader.epoch < epochs:
        for batch in training:
            if save:
                accelerator.save_state(f"{out}/before-{number}")
            with accelerator.accumulate(model):
                log.note(batch)
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            number += 1
            if save:
                accelerator.save_state(f"{out}/after-{number}")
            if number % 5 == 0:
                with torch.no_grad():
                    seen = sum(int(each.weights.sum()) for each in validation for _ in [model(**each)])
                total = accelerator.reduce(torch.tensor(seen))
                assert total == validation.loader.num_samples
            if pauses and number % pauses == 0:
                break
    if accelerator.is_main_process:
        torch.save(net.state_dict(), Path(out) / "weights.pt")


if __name__ == "__main__":
    main(fit)
