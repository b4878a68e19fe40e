"""Model and optimizer of a checkpoint, as torch.distributed.checkpoint writes them, by all processes together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from shardpipe.errors import StoreError
from shardpipe.train.checkpoints.marker import Checkpoint
from shardpipe.train.parallel import World

__all__ = ["restore", "save_tensors"]


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, world: World) -> None:
    """Puts the checkpoint's model and optimizer in place; the optimizer's settings (rate, decay) stay as they are."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    with _alone_on_purpose():
        load(state, storage_reader=FileSystemReader(checkpoint.path), no_dist=world.size == 1)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for group, setting in zip(optimizer.param_groups, settings):
        group.update(setting)


def save_tensors(folder: Path, model: nn.Module, optimizer: Optimizer, world: World) -> None:
    """Writes model and optimizer into a folder that is there. Raises StoreError."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    try:
        state = {"model": model_state, "optimizer": optimizer_state}
        with _alone_on_purpose():
            save(state, storage_writer=_Writer(folder, overwrite=False), no_dist=world.size == 1)
    except CheckpointException as error:
        causes = "; ".join(dict.fromkeys(_root_of(failure[0]) for failure in error.failures.values()))
        fix = "Check the disk, then run the same command again: it goes on from the last checkpoint."
        raise StoreError(f"cannot be written ({causes})", url=str(folder), fix=fix) from error


class _Writer(FileSystemWriter):
    """Writes no path and no random name into the checkpoint."""

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta()


@contextmanager
def _alone_on_purpose() -> Iterator[None]:
    """Keeps torch from warning that one process saves or loads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _root_of(error: BaseException) -> str:
    """What the system said, where torch's own error hides that."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return str(inner or error).splitlines()[0]
