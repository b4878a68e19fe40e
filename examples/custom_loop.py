"""A loop of one's own: `python custom_loop.py TRAIN VALID OUT`, or `torchrun --nproc-per-node 2 custom_loop.py ...`.

It stops at any moment, and goes on when it is started again, on as many processes as there are: a step is the same
batches with the same dropout on any number of them.
"""

import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from ctc import CTC, collate
from torch.nn.parallel import DistributedDataParallel

from shardpipe import ShardLoader

EPOCHS, BATCHES_PER_STEP, SAVE_STEPS = 2, 4, 5
options = {"batch_seconds": 20, "rank": "auto"}
train, valid, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
if dist.is_torchelastic_launched():
    dist.init_process_group()
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
device = torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
torch.manual_seed(1)
model = CTC().to(device)
parallel = DistributedDataParallel(model) if world > 1 else model
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loader = ShardLoader(
    train,
    seed=1,
    batches_per_step=BATCHES_PER_STEP,
    collate=lambda samples, place: (collate(samples), place),
    **options,
)
validation = ShardLoader(valid, shuffle=False, collate=collate, repeat=False, **options)
steps, weight = 0, torch.zeros(1, device=device)
if (out / "last.pt").exists():
    saved = torch.load(out / "last.pt", map_location=device, weights_only=True)
    steps = saved["steps"]
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    loader.load_state_dict(saved["loader"])
out.mkdir(parents=True, exist_ok=True)
while (epoch := loader.epoch) < EPOCHS:
    for batch, place in loader:
        torch.manual_seed(place.seed)  # dropout by the batch's place: a resume draws the same, and so does any rank
        of_batch = batch["weights"].sum().to(device)
        with nullcontext() if place.ends_step or world == 1 else parallel.no_sync():
            loss = parallel(**{name: value.to(device) for name, value in batch.items()})["loss"]
            (loss * of_batch).backward()
        weight += of_batch
        if place.ends_step:
            if world > 1:
                dist.all_reduce(weight)
            for parameter in model.parameters():
                parameter.grad *= world / weight  # DistributedDataParallel has averaged sums over the processes
            optimizer.step()
            optimizer.zero_grad()
            weight.zero_()
            steps += 1
            if rank == 0 and (steps % SAVE_STEPS == 0 or loader.epoch > epoch):
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**states, "loader": loader.state_dict(), "steps": steps}, out / "new.pt")
                (out / "new.pt").replace(out / "last.pt")
    sums = torch.zeros(2, device=device)
    for batch in validation:
        with torch.no_grad():
            loss = model(**{name: value.to(device) for name, value in batch.items()})["loss"]
        sums += torch.stack([loss, torch.ones_like(loss)]) * batch["weights"].sum().to(device)
    if world > 1:
        dist.all_reduce(sums)
    print(f"epoch {loader.epoch}: {steps} steps, validation loss {sums[0] / sums[1]:.3f}", flush=True)
if dist.is_initialized():
    time.sleep(0.5)  # gloo's thread lets go of the last tensor; torch aborts if that comes when Python is ending
    dist.destroy_process_group()
