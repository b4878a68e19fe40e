"""Writing checkpoints beside the training, by all processes together."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from shardpipe.errors import StoreError
from shardpipe.train.checkpoints.collection import Checkpoints
from shardpipe.train.checkpoints.faults import telling
from shardpipe.train.checkpoints.marker import Checkpoint, Progress, marker_of, name_of
from shardpipe.train.checkpoints.pieces import PiecesWriter
from shardpipe.train.checkpoints.storage import PLACE_FIX
from shardpipe.train.checkpoints.tensors import tensors_of
from shardpipe.train.compat import maybe_alone
from shardpipe.train.engines import World

__all__ = ["Saver", "Written"]

_PATIENCE = timedelta(hours=1)
"""So long the quickest process waits for the slowest to have written its share."""
_NICER = 10


@dataclass(frozen=True)
class Written:
    """A checkpoint that is complete, and the seconds that it took to write, beside the training."""

    consumed_samples: int
    seconds: float


class Saver:
    """One of each process. `save` takes a copy and returns; a thread writes it, in a process group of its own, for
    collectives of the training would wait for it otherwise. One is written at a time.
    """

    def __init__(self, checkpoints: Checkpoints, world: World, say: Callable[[str], None]) -> None:
        self._checkpoints = checkpoints
        self._world = world
        self._say = say
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.is_initialized() else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_give_way)
        self._copies: dict[str, Tensor] = {}
        self._writing: Future[None] | None = None
        self._tending: list[Future[None]] = []
        self._failed: int | None = None
        self._written: list[Written] = []

    def save(self, model: nn.Module, optimizer: Optimizer, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint of this moment, in all processes, after what is being written. Raises the
        StoreError that this one ends in, in all of them.
        """
        self.wait()
        tensors = _share(tensors_of(model, optimizer), self._world)
        self._copy(tensors)
        self._writing = self._thread.submit(self._write, tensors, checkpoint)

    @property
    def url(self) -> str:
        """Where they go, for messages."""
        return self._checkpoints.url

    @property
    def has_failed(self) -> bool:
        """Whether `wait` would raise at once."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def wait(self) -> None:
        """Returns when what was saved is complete. Raises StoreError in all processes if one of them cannot write."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def written(self) -> list[Written]:
        """What has become complete since this was last asked."""
        found = self._written[:]
        del self._written[: len(found)]  # the thread may have added another one
        return found

    def mark_evaluated(self, consumed_samples: int, progress: Progress, valid: Mapping[str, float | None]) -> None:
        """Notes in the checkpoint there, when it is complete, that it has been evaluated, and what the run has counted
        since. For the main process.

        Where that fails it is said: a resume from there evaluates again.
        """
        self._tending.append(self._thread.submit(self._mark, consumed_samples, progress, valid))

    def prune(self, consumed_samples: int) -> None:
        """Deletes what is no longer to be kept, as after a save there. For the main process."""
        self._tending.append(self._thread.submit(self._prune, consumed_samples))

    def close(self) -> None:
        """Ends the thread when it has done all that it was given."""
        self._thread.shutdown()
        for done in self._tending:
            done.result()  # it says what it cannot do; anything else is a fault of ours

    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Into memory that is kept for the next time: to take it anew each time would take as long again."""
        pinned = self._world.device.type == "cuda"
        for name, tensor in tensors.items():
            local = _local(tensor).detach()
            copy = self._copies.get(name)
            if copy is None or copy.shape != local.shape or copy.dtype != local.dtype:
                copy = self._copies[name] = torch.empty(local.shape, dtype=local.dtype, pin_memory=pinned)
            copy.copy_(local, non_blocking=True)
        if pinned:
            torch.cuda.synchronize(self._world.device)

    def _write(self, tensors: dict[str, Tensor], checkpoint: Checkpoint) -> None:
        began = time.monotonic()
        count = checkpoint.consumed_samples
        storage = self._checkpoints.storage
        writer = PiecesWriter(
            storage,
            name_of(count),
            self._world.rank,
            lambda files: marker_of(replace(checkpoint, files=files)),
        )
        planner = _Planner(tensors, self._copies)
        try:
            with telling(lambda line: StoreError(f"cannot be written ({line})", url=storage.url, fix=PLACE_FIX)):
                alone = maybe_alone(save, self._group is None)
                save({}, storage_writer=writer, planner=planner, process_group=self._group, **alone)
        except StoreError:
            self._failed = count
            if self._world.is_main:
                storage.abandon(name_of(count))
            raise
        if self._world.is_main:
            self._checkpoints.written(count)
            self._written.append(Written(count, time.monotonic() - began))
            self._prune(count)

    def _mark(self, count: int, progress: Progress, valid: Mapping[str, float | None]) -> None:
        if count == self._failed:
            return
        try:
            self._checkpoints.mark_evaluated(count, progress, valid)
        except StoreError as error:
            self._say(f"the evaluation is not noted in the checkpoint at sample {count}: {error}")
        else:
            self._prune(count)

    def _prune(self, count: int) -> None:
        try:
            self._checkpoints.prune(count)
        except StoreError as error:
            self._say(f"older checkpoints are not removed: {error}")


def _give_way() -> None:
    """Lets this thread run where the training leaves time: steps that fill all cores wait for the slowest of them."""
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICER)


class _Planner(DefaultSavePlanner):
    """Plans by the tensors in use, and writes the copies of what this process has of them.

    It has them from us: `save` would log each of what it is given.
    """

    def __init__(self, tensors: dict[str, Tensor], copies: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._tensors = tensors
        self._copies = copies

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        super().set_up_planner({**state_dict, **self._tensors}, storage_meta, is_coordinator)

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._copies[write_item.index.fqn]


def _share(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """What this process writes: of tensors that are in shares its own, and of those that all processes have some, so
    that all have about the same number of bytes.
    """
    taken = [0] * world.size
    own: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        if isinstance(tensor, DTensor):
            own[name] = tensor
            continue
        rank = taken.index(min(taken))
        taken[rank] += tensor.nbytes
        if rank == world.rank:
            own[name] = tensor
    return own


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
