"""Accelerate: `python accelerate_ctc.py TRAIN VALID OUT`, or by torchrun; given again after a stop, it goes on."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from ctc import CTC, collate

from shardpipe import ShardLoader
from shardpipe.integrations.accelerate import prepare

EPOCHS, SAVE_STEPS = 2, 5
train, valid, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=4)
torch.manual_seed(1)
model = CTC()
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
loader = prepare(accelerator, ShardLoader(train, batch_seconds=20, seed=1, collate=collate))
options = {"batch_seconds": 20, "shuffle": False, "repeat": False, "collate": collate}
validation = prepare(accelerator, ShardLoader(valid, **options))
steps = max((int(path.name.removeprefix("step-")) for path in out.glob("step-*") if path.suffix != ".new"), default=0)
if steps:
    accelerator.load_state(str(out / f"step-{steps}"))
while loader.loader.epoch < EPOCHS:
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            steps += 1
            if steps % SAVE_STEPS == 0:
                folder = out / f"step-{steps}"
                accelerator.save_state(f"{folder}.new")  # its own name once it is whole
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    Path(f"{folder}.new").rename(folder)
    sums = torch.zeros(2, device=accelerator.device)
    for batch in validation:
        with torch.no_grad():
            loss = model(**batch)["loss"]
        sums += torch.stack([loss, torch.ones_like(loss)]) * batch["weights"].sum()
    loss, count = accelerator.reduce(sums).tolist()
    accelerator.print(f"epoch {loader.loader.epoch}: validation loss {loss / count:.3f}")
accelerator.save_model(model, out)
