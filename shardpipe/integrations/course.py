"""A run in a loop of others: it fetches ahead, accumulates and saves as it likes, and what it saves is still right.

A batch is fetched, then trained on, and only with the optimizer's next step is it in the weights. What is saved is the
place after the last batch that is; a resume trains on the others again, and none is lost.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import msgspec
import numpy as np
import torch

from shardpipe import ShardLoader
from shardpipe.errors import ConfigError
from shardpipe.order import STEP, hash_key
from shardpipe.settings import check
from shardpipe.store import converted

__all__ = ["Course", "check_launched"]

_FORMAT = 1


@dataclass(frozen=True)
class _Mark:
    """A place between two batches: the loader's state there, and how many batches of the pass come before it."""

    state: dict[str, Any]
    batches: int


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As a checkpoint holds it. A pass, which frameworks call an epoch, began in an (epoch, sub-epoch) of the data."""

    format: int
    loader: dict[str, Any]
    began: tuple[int, int]
    batches: Annotated[int, msgspec.Meta(ge=0)]
    passes: Annotated[int, msgspec.Meta(ge=0)]
    steps: Annotated[int, msgspec.Meta(ge=0)]
    world_size: Annotated[int, msgspec.Meta(ge=1)]
    ended: bool


class Course:
    """A loader's batches on one rank, pass by pass, and which of them are in the weights.

    `steps`, wherever it is asked for, is how many steps the optimizer has taken: when it has grown, what was trained on
    before is in the weights.
    """

    def __init__(self, loader: ShardLoader, *, rank: int, world_size: int) -> None:
        check("loader", loader, isinstance(loader, ShardLoader), "it must be a ShardLoader")
        check("repeat", loader.repeat, loader.repeat, "training goes on where it was, and repeat=False begins anew")
        _check_unsized(loader.state_dict())
        self.loader = loader
        self.rank, self.world_size = loader.default_ranks(rank, world_size)
        self.passes = 0
        """Passes begun so far."""
        self.steps = 0
        """Steps that the optimizer had taken when that was last said."""
        self._steps_before: int | None = 0
        self._stream: Generator[Any, None, None] | None = None
        self._left: tuple[int, int] | None = None
        self._fetched: deque[_Mark] = deque()
        self._current = self._trained = _Mark(loader.state_dict(), 0)
        self._began = self._place
        self.is_over = False
        """Whether the pass has been given all that its sub-epoch holds, or was put an end to."""

    @property
    def batches(self) -> int:
        """Batches of this pass that are in the weights, as far as is known."""
        return self._trained.batches

    @property
    def consumed_samples(self) -> int:
        """Samples of the run that are in the weights, as far as is known."""
        return int(self._trained.state["consumed_samples"])

    @property
    def stepped(self) -> bool:
        """Whether the optimizer has taken a step since the pass began; of one that was resumed, that is supposed."""
        return self.steps != self._steps_before

    def begin_pass(self, steps: int, *, gradients_stay: bool) -> None:
        """Another pass begins: behind the last batch trained on if its gradients are still there, else behind the last
        one that is in the weights."""
        self.settle(steps)
        since = self._current if gradients_stay else self._trained
        if self._fetched or since is not self._current:
            self._go_to(since.state)
        elif self._place != self._began:
            self.close()
        self.passes += 1
        self._steps_before = steps
        self._current = _Mark(since.state, 0)
        self._trained = self._current if self._trained is since else _Mark(self._trained.state, 0)
        self._began, self.is_over = self._place, False

    def begin_run(self) -> None:
        """The first pass of another run, whose optimizer has taken no step, behind what is in the weights."""
        self.begin_pass(self.steps, gradients_stay=False)
        self.passes, self.steps, self._steps_before = 1, 0, 0

    def left(self) -> int:
        """Batches that the pass has still to give: those that its sub-epoch holds."""
        if self.is_over:
            return 0
        left = self._planned()
        if not left and not self.batches:
            # The epoch ends with nothing but excluded samples: an empty loop goes past them.
            for _ in self.loader.batches():
                pass
            self._began = self._place
            left = self._planned()
        return left

    def lengths(self) -> Iterator[int]:
        """Batches left of this pass, and those of the passes that follow, without end."""
        yield self.left()
        yield from islice(self.loader.lengths(), 0 if self.is_over else 1, None)

    def fetch(self) -> Iterator[Any]:
        """The rest of the pass. What one that was cut short has made ahead, the next one goes on with."""
        number = self._current.batches
        while not self.is_over:
            self._stream = self._stream or self.loader.batches()
            try:
                batch = next(self._stream)
            except StopIteration:
                self._stream, self.is_over = None, True
                return
            number += 1
            self._fetched.append(_Mark(self.loader.state_dict(), number))
            yield batch

    def train(self, steps: int) -> None:
        """The oldest of the fetched batches is trained on next: what is random then becomes a function of its place."""
        self.settle(steps)
        if self._fetched:
            self._current = self._fetched.popleft()
        state = self._current.state
        key = int(hash_key(state["seed"], STEP, state["consumed_samples"], self.rank)[0] >> 1)
        torch.manual_seed(key)
        random.seed(key)
        np.random.seed(key % 2**32)

    def settle(self, steps: int) -> None:
        """Takes note of the steps that the optimizer has taken."""
        if steps != self.steps:
            self.steps, self._trained = steps, self._current

    def state(self, steps: int, *, ended: bool = False) -> dict[str, Any]:
        """What `restore` takes, JSON-able: the place behind what is in the weights. `ended` says that the framework has
        put an end to the pass there."""
        self.settle(steps)
        state = _State(
            format=_FORMAT,
            loader=self._trained.state,
            began=self._began,
            batches=self._trained.batches,
            passes=self.passes,
            steps=steps,
            world_size=self.world_size,
            ended=ended,
        )
        return dict(msgspec.to_builtins(state))

    def restore(self, state: object) -> None:
        """Goes on where `state` was taken. On another world size the pass counts as many batches as would have given it
        as many samples. Raises ResumeMismatch, and ConfigError for what is no state."""
        try:
            saved = converted(state, _State)
        except ValueError as error:
            raise ConfigError("state", state, f"it is none ({error})", fix="Resume from another checkpoint.") from error
        check("state", saved.format, saved.format == _FORMAT, "another version of shardpipe has saved it")
        _check_unsized(saved.loader)
        self._go_to(saved.loader)
        self.passes, self.steps, self._steps_before = saved.passes, saved.steps, None
        self._current = self._trained = _Mark(saved.loader, -(-saved.batches * saved.world_size // self.world_size))
        self.is_over = saved.ended or (saved.batches > 0 and self._place != saved.began)
        self._began = saved.began if saved.batches else self._place

    def close(self) -> None:
        """Ends what is being made ahead."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    @property
    def _place(self) -> tuple[int, int]:
        return self.loader.epoch, self.loader.sub_epoch

    def _planned(self) -> int:
        """Batches left from where the loader is: frameworks ask several times, and an epoch takes a while to plan."""
        count = self.loader.consumed_samples
        if self._left is None or self._left[0] != count:
            self._left = (count, self.loader.batches_left())
        return self._left[1]

    def _go_to(self, state: dict[str, Any]) -> None:
        self.close()
        self._fetched.clear()
        self._left = None
        self.loader.load_state_dict(state)


def _check_unsized(state: dict[str, Any]) -> None:
    size = state.get("batches_per_step")
    check("batches_per_step", size, size is None, "here the framework says how many batches a step accumulates")


def check_launched(launched: int, known: int, fix: str) -> None:
    """Raises ConfigError where a framework takes this process for the only one, and a launcher has started several."""
    if launched > 1 and known == 1:
        rule = f"{launched} processes were launched, and each would train on all data by itself"
        raise ConfigError("world_size", known, rule, fix=fix)
