"""One process of a world: it saves a checkpoint by each engine, and loads those of all worlds by each of its own.

python -m tests.train.checkpoints.under_world RANK WORLD_SIZE FOLDER
"""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from shardpipe.train.checkpoints import Checkpoints, Keep, Saver, read_checkpoint, restore
from shardpipe.train.checkpoints.tensors import tensors_of
from shardpipe.train.config import TrainConfig
from shardpipe.train.engines import World, engine_for
from tests.train.checkpoints.saved import facts

ENGINES = ("ddp", "fsdp")
SIZES = (1, 2, 3)


def learner(engine: str, world: World) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Tensors that no world divides evenly, with fewer rows than processes among them."""
    block = nn.Sequential(nn.Linear(3, 7), nn.LayerNorm(7))
    model = nn.Sequential(block, nn.Linear(7, 1, bias=False), nn.Linear(1, 5))
    config = TrainConfig(data="data", out="out", engine=engine)
    made = engine_for(config, world, model, [block])
    return made.model, torch.optim.AdamW(made.model.parameters())


def values(name: str, shape: torch.Size, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))
    return torch.randn(shape, generator=generator)


def fill(tensors: dict[str, Tensor], seed: int) -> None:
    for name, tensor in tensors.items():
        whole = values(name, tensor.shape, seed)
        with torch.no_grad():
            if isinstance(tensor, DTensor):
                tensor.copy_(distribute_tensor(whole, tensor.device_mesh, tensor.placements))
            else:
                tensor.copy_(whole)


def number(size: int, engine: str) -> int:
    return 10 * size + ENGINES.index(engine)


def main(rank: int, size: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / f"store-{size}"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    world = World(rank=rank, size=size, device=torch.device("cpu"))
    for engine in ENGINES:
        model, optimizer = learner(engine, world)
        fill(tensors_of(model, optimizer), number(size, engine))
        saver = Saver(Checkpoints(str(folder / f"{engine}-{size}"), keep=Keep()), world, print)
        saver.save(model, optimizer, facts(number(size, engine)))
        fill(tensors_of(model, optimizer), 0)  # what is written is a copy
        saver.wait()
        saver.close()
    saved = {(e, s): f"{folder}/{e}-{s}/{number(s, e):012d}" for e in ENGINES for s in SIZES}
    while not all(Path(place).exists() for place in saved.values()):
        time.sleep(0.05)
    for engine in ENGINES:
        for (by, at), place in saved.items():
            model, optimizer = learner(engine, world)
            restore(read_checkpoint(place), model, optimizer, world)
            tensors = tensors_of(model, optimizer)
            assert len(tensors) == 7 * 4
            for name, tensor in tensors.items():
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                assert torch.equal(whole, values(name, tensor.shape, number(at, by))), (place, engine, name)
            assert all(torch.equal(tensor, tensors_of(model, optimizer)[name]) for name, tensor in tensors.items())
    dist.barrier()
    time.sleep(0.5)  # gloo's thread may still be letting go of the last tensor
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
