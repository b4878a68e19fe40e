"""A loop of one's own: `python custom_loop.py TRAIN VALID OUT`, or `torchrun --nproc-per-node 2 custom_loop.py ...`.

It stops at any moment, and goes on when it is started again, on as many processes as there are.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from ctc import CTC, collate
from torch.nn.parallel import DistributedDataParallel

from shardpipe import ShardLoader

EPOCHS, ACCUMULATE, SAVE_STEPS = 2, 4, 5
train, valid, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
if dist.is_torchelastic_launched():
    dist.init_process_group()
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
device = torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
torch.manual_seed(1)
model = CTC().to(device)
parallel = DistributedDataParallel(model) if world > 1 else model
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loader = ShardLoader(train, batch_seconds=20, seed=1, rank="auto", collate=collate)
validation = ShardLoader(valid, batch_seconds=20, shuffle=False, rank="auto", collate=collate, repeat=False)
steps = 0
if (out / "last.pt").exists():
    saved = torch.load(out / "last.pt", map_location=device, weights_only=True)
    steps = saved["steps"]
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    loader.load_state_dict(saved["loader"])
out.mkdir(parents=True, exist_ok=True)
while loader.epoch < EPOCHS:
    left = loader.batches_left()
    for number, batch in enumerate(loader, 1):
        torch.manual_seed(loader.consumed_samples * world + rank)  # dropout by the place: a resume draws the same
        step_now = number % ACCUMULATE == 0 or number == left
        with nullcontext() if step_now or world == 1 else parallel.no_sync():
            parallel(**{name: value.to(device) for name, value in batch.items()})["loss"].backward()
        if step_now:
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if rank == 0 and (steps % SAVE_STEPS == 0 or number == left):
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
