"""Small checkpoints for tests: written, read back, and changed as somebody else might."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shardpipe.train.checkpoints import (
    Checkpoint,
    Checkpoints,
    Identity,
    Keep,
    Progress,
    Saver,
    read_checkpoint,
    read_weights,
)
from shardpipe.train.checkpoints.marker import Sum, marker_of, parse_marker
from shardpipe.train.checkpoints.tensors import tensors_of
from shardpipe.train.engines import World

__all__ = ["ALONE", "facts", "hold", "index_of", "model_and_optimizer", "plant", "save", "tensors_in"]

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def facts(count: int, **more: Any) -> Checkpoint:
    return Checkpoint(
        consumed_samples=count,
        progress=Progress(),
        identity=Identity(model="tiny", units=("<blank>", "<unk>"), sample_rate=16000),
        loader={"consumed_samples": count},
        **more,
    )


def model_and_optimizer(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A few tensors of odd shapes, and an optimizer that has taken a step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 1, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def hold(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of all tensors."""
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model, optimizer).items()}


def save(place: str, *counts: int, keep: Keep | None = None, checkpoints: Checkpoints | None = None) -> None:
    """Checkpoints at these counts, one after another, by a run that says nothing."""
    said: list[str] = []
    saver = Saver(checkpoints or Checkpoints(place, keep=keep or Keep(newest=99)), ALONE, said.append)
    for count in counts:
        saver.save(*model_and_optimizer(count), facts(count))
        saver.wait()
    saver.close()
    assert not said


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """The model's tensors, read as `export` does."""
    return read_weights(read_checkpoint(str(folder)))


def plant(folder: Path, files: dict[str, bytes]) -> None:
    """Puts files into a checkpoint, which says that they are its own."""
    found = parse_marker((folder / "checkpoint.json").read_bytes(), str(folder))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sums = {**found.files, **{name: Sum.of([content]) for name, content in files.items()}}
    (folder / "checkpoint.json").write_bytes(marker_of(replace(found, files=sums)))


def index_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tensors.json").read_bytes())
    return found
