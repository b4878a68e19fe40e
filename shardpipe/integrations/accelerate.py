"""Accelerate: a ShardLoader for a loop of one's own under an Accelerator, its place in what that saves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any
from weakref import finalize, ref

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

try:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderStateMixin
    from accelerate.state import GradientState
    from accelerate.utils import get_int_from_env, send_to_device
except ModuleNotFoundError as error:
    raise ImportError(
        "shardpipe.integrations.accelerate needs Accelerate: pip install 'shardpipe[accelerate]'"
    ) from error

from shardpipe import ShardLoader
from shardpipe.errors import ConfigError
from shardpipe.integrations.course import Course, check_launched
from shardpipe.loading import NoDataLoader, check_caller
from shardpipe.settings import check

__all__ = ["PreparedLoader", "prepare"]


def prepare(accelerator: Accelerator, loader: ShardLoader, optimizer: Optimizer | None = None) -> PreparedLoader:
    """The loader as `accelerator.prepare` would make it: ranks from the accelerator unless it was given some, batches
    on its device, `accumulate` told where an epoch ends.

    A loader for training becomes part of `save_state` and `load_state`, in the order in which such are prepared and
    other objects registered: with the place behind the last batch trained on before an optimizer's last step. Save when
    all of a batch's steps are taken. What is random in a loop's body (torch, numpy, random) is keyed by the batch's
    place and rank. A loader with repeat=False is for validation, and leaves no trace.

    optimizer: the one whose steps are meant, where several loaders are trained on; else they may be any optimizer's.

    Raises ConfigError for an accelerator that splits batches or dispatches them, as every process makes its own, for
    one that does not know of the other processes, and for a second loader to train on if it was not said for each which
    optimizer trains on it. A loop raises ConfigError after a whole pass without a step, and RuntimeError if it goes on
    after another one has begun or a state was loaded.
    """
    check("loader", loader, isinstance(loader, ShardLoader), "it must be a ShardLoader")
    config = accelerator.dataloader_config
    rule = "every process makes its own batches: leave it out"
    check("split_batches", config.split_batches, not config.split_batches, rule)
    check("dispatch_batches", config.dispatch_batches, not config.dispatch_batches, rule)
    launched = get_int_from_env(["WORLD_SIZE"], 1)
    check_launched(launched, accelerator.num_processes, "Without a GPU, give Accelerator(cpu=True).")
    prepared = PreparedLoader(accelerator, loader, getattr(optimizer, "optimizer", optimizer))
    if loader.repeat:
        others = [other for other in accelerator._custom_objects if isinstance(other, PreparedLoader)]
        told = all(other.optimizer is not None for other in [*others, prepared])
        rule = "several loaders are trained on, and their places are told by its steps: give it for each"
        check("optimizer", None, told or not others, rule)
        accelerator.register_for_checkpointing(prepared)
    return prepared


class PreparedLoader(DataLoaderStateMixin, NoDataLoader):  # type: ignore[misc]
    """What `prepare` gives: iterate over it as over the ShardLoader, which is its `loader`."""

    def __init__(self, accelerator: Accelerator, loader: ShardLoader, optimizer: Optimizer | None) -> None:
        self.loader = loader
        self.optimizer = optimizer
        self.gradient_state = GradientState()
        self._accelerator = accelerator
        self._iteration: object = None
        ranks = loader.default_ranks(accelerator.process_index, accelerator.num_processes)
        self._course = Course(loader, rank=ranks[0], world_size=ranks[1]) if loader.repeat else None
        if self._course is not None:
            _count_steps(self, self._course, optimizer)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """The rest of the current sub-epoch."""
        if self.loader.repeat:
            check_caller(sys._getframe(1))
        return self._batches()

    def state_dict(self) -> dict[str, Any]:
        """The place behind what is in the weights; that of a loader with repeat=False does not exist."""
        return self._trained.state(self._trained.steps)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ResumeMismatch, and ConfigError for what is no state."""
        self._trained.restore(state)
        self._iteration = None
        # Where an accumulation was cut short, it begins anew.
        self._accelerator.step = 0
        for optimizer in self._accelerator._optimizers:
            optimizer.optimizer.zero_grad()

    def _batches(self) -> Iterator[Any]:
        mine = self._iteration = object()
        course, device = self._course, self._accelerator.device if self._accelerator.device_placement else None
        self.begin()
        try:
            if course is not None:
                course.begin_pass(course.steps, gradients_stay=True)
            # One ahead, to know the last one.
            batches = iter(self.loader.batches() if course is None else course.fetch())
            batch = next(batches, _END)
            given = batch is not _END
            while batch is not _END:
                following = next(batches, _END)
                self.end_of_dataloader = following is _END
                if course is not None:
                    course.train(course.steps)
                yield batch if device is None else send_to_device(batch, device, non_blocking=True)
                if self._iteration is not mine:
                    raise RuntimeError("another `for` over this loader has begun, or a state was loaded")
                batch = following
        finally:
            self.end()
        if course is not None and given and not course.stepped:
            rule = "no torch optimizer took a step in a whole pass, by which the place in the run is told"
            raise ConfigError("optimizer", self.optimizer, rule, fix="Only to look at data, use repeat=False.")

    @property
    def _trained(self) -> Course:
        check("repeat", False, self._course is not None, "every pass begins anew, and has no state")
        assert self._course is not None
        return self._course


def _count_steps(prepared: PreparedLoader, course: Course, optimizer: Optimizer | None) -> None:
    """Tells the course of every step of the optimizer, or of any, for as long as the prepared loader is there."""
    there = ref(course)  # torch keeps the hook, which must not keep the course

    def stepped(stepping: Optimizer, *_: Any) -> None:
        if (mine := there()) is not None and (optimizer is None or stepping is optimizer):
            mine.settle(mine.steps + 1)

    finalize(prepared, register_optimizer_step_post_hook(stepped).remove)


_END = object()
