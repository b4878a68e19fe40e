"""Who iterates over a loader: where a loop of others would lose or repeat samples in silence, it gets one error."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from types import FrameType
from typing import Any, NoReturn

import torch.utils.data

from shardpipe.errors import ConfigError

__all__ = ["NoDataLoader", "check_caller", "check_process", "watched"]

# Such loops read the length once, restore states in mid-epoch only or not at all, and skip what is done once more.
_INTEGRATIONS = {
    "lightning": "lightning.ShardData(data, ...)",
    "pytorch_lightning": "lightning.ShardData(data, ...)",
    "transformers": "transformers.ShardTrainerMixin, with train_loader=",
    "accelerate": "accelerate.prepare(accelerator, loader)",
}


class NoDataLoader:
    """What is asked of a torch DataLoader or its dataset, and has no answer here."""

    def __getitem__(self, index: object) -> NoReturn:
        """There is no batch by number: a torch DataLoader would ask for them."""
        raise TypeError(
            "a ShardLoader makes whole batches, in threads or `workers` of its own: iterate over it itself, instead of "
            "putting it into a torch DataLoader; for Lightning, transformers, Accelerate, see shardpipe.integrations"
        )

    @property
    def dataset(self) -> NoReturn:
        """There is none: what skips batches of a dataset, to resume, would ask for it."""
        raise AttributeError(
            "a ShardLoader has no `dataset` whose first batches could be skipped: it goes on by itself where its state "
            "was taken; in Accelerate, train by shardpipe.integrations.accelerate.prepare(accelerator, loader)"
        )


def check_process() -> None:
    """Raises ConfigError in a worker of a torch DataLoader: each of them would deliver everything."""
    worker = torch.utils.data.get_worker_info()
    if worker is not None:
        rule = "each of them would deliver all batches, and the count of what is consumed would stay with them"
        fix = "Iterate over the ShardLoader itself, which reads ahead in threads or `workers` of its own."
        raise ConfigError("num_workers", worker.num_workers, rule, fix=fix)


def check_caller(caller: FrameType) -> None:
    """Raises ConfigError if the caller is a training loop that cannot resume a loader."""
    module = str(caller.f_globals.get("__name__"))
    integration = _INTEGRATIONS.get(module.partition(".")[0])
    if integration is not None:
        rule = "its loop would lose or repeat samples when it resumes a loader by itself"
        fix = f"Train by shardpipe.integrations.{integration}. To validate, make the loader with repeat=False."
        raise ConfigError("caller", module, rule, fix=fix)


def watched(batches: Generator[Any, None, None]) -> Iterator[Any]:
    """The batches. Where Accelerate accumulates gradients meanwhile, and does not know where an epoch of this loader
    ends, it raises ConfigError; where it is there, but does not save the loader's place, it warns.
    """
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None and accelerate.is_initialized():
        told = "an Accelerator is there, and its save_state will not hold the place of this loader: iterate over "
        warnings.warn(f"{told}shardpipe.integrations.{_INTEGRATIONS['accelerate']}", stacklevel=2)
    with closing(batches):
        for batch in batches:
            synchronised = _accelerate_synchronises()
            yield batch
            if synchronised and not _accelerate_synchronises():
                rule = "Accelerate accumulates gradients, and nothing tells it where an epoch of this loader ends"
                fix = f"Iterate over shardpipe.integrations.{_INTEGRATIONS['accelerate']}."
                raise ConfigError("gradient_accumulation_steps", "more than 1", rule, fix=fix)


def _accelerate_synchronises() -> bool:
    """Whether gradients are exchanged with this batch, as far as Accelerate knows, if it is there at all."""
    accelerate = sys.modules.get("accelerate.state")
    return accelerate is None or bool(accelerate.GradientState().sync_gradients)
