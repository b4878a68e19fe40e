"""Where a loader is in its run: a count of consumed samples, and what of the sequence lies ahead of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shardpipe.errors import ConfigError
from shardpipe.loading.sequence import BatchSequence
from shardpipe.loading.work import Work
from shardpipe.order import Step
from shardpipe.settings import check, integer

__all__ = ["Cursor"]


class Cursor:
    """The count, and the sub-epoch that it lies in. Without `repeat` every pass begins at 0 and leaves no trace.

    The count moves at a step's end. A loop that is left in a step leaves its rank's batches of it `given`, by which the
    next loop goes on in this process; what is saved is the step's start.
    """

    def __init__(
        self,
        sequence: BatchSequence,
        sub_epochs: int = 1,
        sub_epoch_samples: int | None = None,
        *,
        consumed: int = 0,
        repeat: bool = True,
    ) -> None:
        self.sequence = sequence
        self.consumed = integer("resume_samples", consumed, least=0)
        self.repeat = repeat
        self.num_excluded = 0
        self._given = (0, 0)  # (ranks, batches that this one was given of the step under way)
        self.sub_epochs = integer("sub_epochs", sub_epochs, least=1)
        if sub_epoch_samples is not None:
            largest = integer("sub_epoch_samples", sub_epoch_samples, least=1)
            check("sub_epoch_samples", largest, sub_epochs == 1, f"sub_epochs is {sub_epochs}: give one of the two")
            self.sub_epochs = -(-sequence.num_samples // largest)
        check("repeat", repeat, repeat or self.sub_epochs == 1, "every pass is a whole one, and sub-epochs cut it up")
        check("repeat", repeat, repeat or not consumed, "every pass begins anew, and resume_samples is not 0")
        self._length: tuple[object, int] | None = None

    @property
    def epoch(self) -> int:
        return self.consumed // self.sequence.num_samples

    @property
    def sub_epoch(self) -> int:
        return self.sequence.sub_epoch(self.consumed, self.sub_epochs)

    @property
    def end(self) -> int:
        """The count at which the sub-epoch has had its share."""
        return self.sequence.sub_epoch_end(self.consumed, self.sub_epochs)

    def steps(self, world_size: int) -> Iterator[Step]:
        """The rest of the sub-epoch."""
        return self.sequence.steps(self.consumed, world_size=world_size, sub_epochs=self.sub_epochs)

    def given(self, world_size: int) -> int:
        """Batches that this rank was given of the step under way; of another number of ranks' steps, none."""
        ranks, number = self._given
        return number if ranks == world_size else 0

    def length(self, world_size: int) -> int:
        """Batches of a rank in the whole sub-epoch, from where a run on these ranks that is never stopped begins it."""
        count = self.consumed if self.repeat else 0
        this = (count // self.sequence.num_samples, self.sequence.sub_epoch(count, self.sub_epochs), world_size)
        if self._length is None or self._length[0] != this:
            steps = self.sequence.sub_epoch_steps(count, world_size=world_size, sub_epochs=self.sub_epochs)
            self._length = (this, sum(step.times(world_size) for step in steps))
        return self._length[1]

    def lengths(self, world_size: int) -> Iterator[int]:
        """Batches of a rank that are left of this sub-epoch, and those of the sub-epochs that follow, without end."""
        while not self.repeat:
            yield self.length(world_size)
        ahead = Cursor(self.sequence, sub_epochs=self.sub_epochs, consumed=self.consumed)
        ahead._given = self._given
        while True:
            began, end = ahead.consumed, ahead.end
            number = -ahead.given(world_size)
            for step in ahead.steps(world_size):
                ahead.consumed = step.count
                number += step.times(world_size)
            if ahead.consumed < end:
                ahead.exclude_the_rest(began)
            ahead._given = (0, 0)
            yield number

    def take(self, work: Work, world_size: int) -> None:
        """A batch is handed over."""
        self._given = (0, 0) if work.place.ends_step else (world_size, self.given(world_size) + 1)
        self.advance(work.place.consumed_samples, delivered=work.delivered)

    def advance(self, count: int, *, delivered: int) -> None:
        self.num_excluded += count - self.consumed - delivered
        self.consumed = count

    def exclude_the_rest(self, began: int) -> None:
        """Nothing but excluded samples is left of the epoch, of which a loop has been given what lies after `began`."""
        size = self.sequence.num_samples
        if self.consumed == began == self.epoch * size:
            batching = self.sequence.batching
            limits = (batching.min_seconds, batching.max_seconds)
            raise ConfigError("(min_seconds, max_seconds)", limits, "some sample must lie between them, and none does")
        self.advance((self.epoch + 1) * size, delivered=0)

    def rewind(self) -> None:
        self.consumed = self.num_excluded = 0
        self._given = (0, 0)

    def restore(self, state: dict[str, Any]) -> None:
        check("repeat", self.repeat, self.repeat, "every pass begins anew: there is nothing to go on with")
        self.consumed = self.sequence.restore(state)
        self.num_excluded, self._length, self._given = 0, None, (0, 0)
