"""Accelerate: a ShardLoader for a loop of one's own under an Accelerator, its place in what that saves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

try:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderStateMixin
    from accelerate.state import GradientState
    from accelerate.utils import send_to_device
except ModuleNotFoundError as error:
    raise ImportError(
        "shardpipe.integrations.accelerate needs Accelerate: pip install 'shardpipe[accelerate]'"
    ) from error

from shardpipe import ShardLoader
from shardpipe.integrations.course import Course
from shardpipe.loading import NoDataLoader
from shardpipe.settings import check

__all__ = ["PreparedLoader", "prepare"]


def prepare(accelerator: Accelerator, loader: ShardLoader) -> PreparedLoader:
    """The loader as `accelerator.prepare` would make it: ranks from the accelerator unless it was given some, batches
    on its device, `accumulate` told where an epoch ends.

    A loader for training becomes part of `save_state` and `load_state`, in the order in which such are prepared and
    other objects registered: with the place behind the last batch that was trained on before an optimizer's last step.
    What is random in a loop's body (torch, numpy, random) is keyed by the batch's place and rank. A loader with
    repeat=False is for validation, and leaves no trace.

    Raises ConfigError for an accelerator that splits batches or dispatches them: every process makes its own.
    """
    config = accelerator.dataloader_config
    rule = "every process makes its own batches: leave it out"
    check("split_batches", config.split_batches, not config.split_batches, rule)
    check("dispatch_batches", config.dispatch_batches, not config.dispatch_batches, rule)
    prepared = PreparedLoader(accelerator, loader)
    if loader.repeat:
        accelerator.register_for_checkpointing(prepared)
    return prepared


class PreparedLoader(DataLoaderStateMixin, NoDataLoader):  # type: ignore[misc]
    """What `prepare` gives: iterate over it as over the ShardLoader, which is its `loader`."""

    def __init__(self, accelerator: Accelerator, loader: ShardLoader) -> None:
        self.loader = loader
        self.gradient_state = GradientState()
        self._accelerator = accelerator
        self._steps = 0
        ranks = loader.default_ranks(accelerator.process_index, accelerator.num_processes)
        self._course = Course(loader, rank=ranks[0], world_size=ranks[1]) if loader.repeat else None
        if self._course is not None:
            register_optimizer_step_post_hook(self._stepped)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """The rest of the current sub-epoch."""
        self.begin()
        try:
            if self._course is not None:
                self._course.begin_pass(self._steps, gradients_stay=True)
            # One ahead, to know the last one.
            batches = iter(self.loader.batches() if self._course is None else self._course.fetch())
            batch = next(batches, _END)
            while batch is not _END:
                following = next(batches, _END)
                self.end_of_dataloader = following is _END
                if self._course is not None:
                    self._course.train(self._steps)
                yield send_to_device(batch, self._accelerator.device, non_blocking=True)
                batch = following
        finally:
            self.end()

    def state_dict(self) -> dict[str, Any]:
        """The place behind what is in the weights; that of a loader with repeat=False does not exist."""
        return self._trained.state(self._steps)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ResumeMismatch, and ConfigError for what is no state."""
        self._trained.restore(state)
        self._steps = self._trained.steps
        # Where an accumulation was cut short, it begins anew.
        self._accelerator.step = 0

    @property
    def _trained(self) -> Course:
        check("repeat", False, self._course is not None, "every pass begins anew, and has no state")
        assert self._course is not None
        return self._course

    def _stepped(self, *_: object) -> None:
        self._steps += 1


_END = object()
