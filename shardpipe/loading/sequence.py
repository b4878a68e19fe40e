"""The sequence of batches of a whole run over one dataset: index, order and plan put together.

It is a pure function of (dataset fingerprint, seed, plan parameters). Counts here are the run's consumed_samples: epoch
e begins at e * N. Only the index is ever read, never a shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import msgspec
import numpy as np

from shardpipe.dataset import Index
from shardpipe.errors import ConfigError, ResumeMismatch
from shardpipe.order import (
    ALGORITHM,
    COUNT_MAX,
    DEFAULT_WINDOW,
    Batching,
    Floats,
    Ints,
    Order,
    Plan,
    PlannedBatch,
    Step,
    by_shard,
    default_lanes,
    steps,
)
from shardpipe.store import converted

__all__ = ["STATE_FORMAT", "BatchSequence"]

STATE_FORMAT = 2
"""Of states that hold batches_per_step; those without it have format 1, as ever."""

_FIXES = {
    "format": "The state was saved by another version of shardpipe: resume with that version.",
    "algorithm": "The order has changed between these versions of shardpipe: resume with the one that saved the state.",
    "fingerprint": "The state belongs to another dataset: point at the one it was saved with, or start a new run.",
    "seed": "Use the seed of the run that saved the state, or start a new run.",
    "plan": "The order is fixed for a run: use the same window, lanes and shuffle, or start a new run.",
    "batches_per_step": "Give the run's own, whatever the number of ranks. To go on with other steps from there, load "
    'state | {"batches_per_step": N}.',
}

_MEND = "It is damaged: load what state_dict() gave."


class _Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The plan of a state: what makes the order, and the fields of Batching."""

    window: int
    lanes: int
    shuffle: bool
    batch_size: int | None
    batch_seconds: float | None
    min_seconds: float | None
    max_seconds: float | None
    origin: int


class _Place(msgspec.Struct, frozen=True):
    consumed_samples: Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX - 1)]
    plan: _Plan
    batches_per_step: Annotated[int, msgspec.Meta(ge=1)] | None


@dataclass(frozen=True, kw_only=True)
class _Change:
    """From `since` consumed samples on, this batching holds; its origin counts in the epoch of `since` alone."""

    since: int
    batching: Batching


class BatchSequence:
    """All batches of all epochs of `index`'s dataset, under one seed, order and batching.

    `lanes` None takes the default for the dataset; without shuffling that is one lane, which keeps the packed order.
    `batches_per_step` is of all ranks together; None makes it as many as there are ranks.
    """

    def __init__(
        self,
        index: Index,
        batching: Batching,
        *,
        seed: int = 0,
        shuffle: bool = True,
        window: int = DEFAULT_WINDOW,
        lanes: int | None = None,
        batches_per_step: int | None = None,
    ) -> None:
        if not index.num_samples:
            raise ConfigError("data", index.store.url, "it must hold a sample, and holds none")
        if lanes is None:
            lanes = default_lanes(index.counts, window) if shuffle else 1
        self.index = index
        self.order = Order(index.counts, seed=seed, window=window, lanes=lanes, shuffle=shuffle)
        self.num_samples = index.num_samples
        self.batches_per_step = batches_per_step
        self._ordinals = np.cumsum(index.counts) - index.counts
        self._changes = [_Change(since=0, batching=batching)]
        self._stated: tuple[int, int, dict[str, Any]] | None = None
        """The plan that holds from and up to two counts, as a state has it: every batch has one."""

    @property
    def batching(self) -> Batching:
        """The batching asked for; a restored one may still have to finish its rung or super-window."""
        return self._changes[-1].batching

    @property
    def plan(self) -> Plan:
        """That of every epoch under this batching; of the epoch in which a restored one took over, of its end alone."""
        return self._plan(self.batching)

    def batches(self, consumed: int) -> Iterator[PlannedBatch]:
        """The rest of the epoch from a count on, beginning with the rest of a begun batch; counts are the run's."""
        epoch = consumed // self.num_samples
        base = epoch * self.num_samples
        for plan, since, until in self._plans(epoch):
            if until > consumed:
                for batch in plan.batches(epoch, max(consumed, since) - base, until - base):
                    yield replace(batch, count=base + batch.count)

    def step_size(self, world_size: int) -> int:
        """Batches of a step on so many ranks."""
        return self.batches_per_step or world_size

    def steps(self, consumed: int, *, world_size: int = 1, sub_epochs: int = 1) -> Iterator[Step]:
        """The rest of the sub-epoch that the count lies in: it ends with the first step that reaches its share."""
        end = self.sub_epoch_end(consumed, sub_epochs)
        for step in steps(self.batches(consumed), self.step_size(world_size), begin=consumed):
            yield step
            if step.count >= end:
                return

    def sub_epoch_steps(self, consumed: int, *, world_size: int = 1, sub_epochs: int = 1) -> Iterator[Step]:
        """The whole sub-epoch of the count, from where a run that is never stopped begins it on so many ranks."""
        base = start = consumed // self.num_samples * self.num_samples
        number = self.sub_epoch(consumed, sub_epochs)
        while self.sub_epoch(start, sub_epochs) < number:
            before = start
            for step in self.steps(start, world_size=world_size, sub_epochs=sub_epochs):
                start = step.count
            if start in (before, base + self.num_samples):  # a step may hold several small sub-epochs
                return self.steps(before, world_size=world_size, sub_epochs=sub_epochs)
        return self.steps(start, world_size=world_size, sub_epochs=sub_epochs)

    def sub_epoch(self, consumed: int, sub_epochs: int) -> int:
        """The number, within its epoch, of the sub-epoch that the count lies in."""
        return consumed % self.num_samples * sub_epochs // self.num_samples

    def sub_epoch_end(self, consumed: int, sub_epochs: int) -> int:
        """The count at which the sub-epoch of `consumed` has had its 1/sub_epochs share of the epoch."""
        share = self.sub_epoch(consumed, sub_epochs) + 1
        return consumed // self.num_samples * self.num_samples + -(-self.num_samples * share // sub_epochs)

    def samples(self, epoch: int, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """(shard, index in the shard, ordinal in the dataset) of each position."""
        shard, place = self.order.sample_at(positions, epoch)
        return shard, place, self._ordinals[shard] + place

    def keys(self, epoch: int, positions: Ints) -> list[str]:
        """The samples' keys."""
        shards, places = self.order.sample_at(positions, epoch)
        return [self.index.rows(int(s)).column("key")[int(i)].as_py() for s, i in zip(shards, places)]

    def seconds(self, epoch: int, positions: Ints) -> Floats:
        """The samples' lengths in seconds, float64; reads each shard's lengths once."""
        shards, places = self.order.sample_at(positions, epoch)
        lengths = np.empty(len(positions))
        wanted = by_shard(shards)
        self.index.load_ahead(wanted, seconds=True)
        for shard, here in wanted.items():
            lengths[here] = self.index.seconds(shard)[places[here]]
        return lengths

    def state(self, consumed: int) -> dict[str, Any]:
        """What resumes the run at a count: small, JSON-able, without a word of ranks, workers or paths."""
        stated = self._stated  # by one assignment of one tuple, for threads
        if stated is None or not stated[0] <= consumed < stated[1]:
            plans = self._plans(consumed // self.num_samples)
            plan, since, until = next((p, since, until) for p, since, until in plans if since <= consumed < until)
            self._stated = stated = since, until, {**self._order_parameters(), **asdict(plan.batching)}
        state = {
            "format": 1 if self.batches_per_step is None else STATE_FORMAT,
            "algorithm": ALGORITHM,
            "fingerprint": self.index.fingerprint,
            "seed": self.order.seed,
            "consumed_samples": consumed,
            "plan": dict(stated[2]),
        }
        if self.batches_per_step is not None:
            state["batches_per_step"] = self.batches_per_step
        return state

    def restore(self, state: dict[str, Any]) -> int:
        """Take a saved state's place and return its count. If the batching differs, the saved one first finishes its
        rung or super-window, and then this sequence's own holds.

        Another dataset, seed, order or algorithm raises ResumeMismatch, which says all that differs: the count would
        mean others. What `state` never gave raises ConfigError.
        """
        _check_state(state, isinstance(state, dict), "it must be a dict")
        is_first = state.get("format") == 1
        own = {"format": 1 if is_first else STATE_FORMAT, "algorithm": ALGORITHM}
        differ = []
        for field, current in {**own, "fingerprint": self.index.fingerprint, "seed": self.order.seed}.items():
            value = state.get(field)
            if type(value) is not type(current) or value != current:
                differ.append(ResumeMismatch(field, value, current, fix=_FIXES[field]))
                if field in own:  # what the others mean is then not known
                    raise differ[0]
        try:
            place = converted({name: state.get(name) for name in _Place.__struct_fields__}, _Place)
        except ValueError as error:
            raise ConfigError("state", state, f"it is none ({error})", fix=_MEND) from error
        parameters = msgspec.structs.asdict(place.plan)
        for field, current in self._order_parameters().items():
            if (was := parameters.pop(field)) != current:
                differ.append(ResumeMismatch(field, was, current, fix=_FIXES["plan"]))
        if differ:
            raise ResumeMismatch.of_all(differ)
        size, rule = place.batches_per_step, "a state of format 2 alone has it, and always"
        if (size is None) != is_first:
            raise ConfigError("batches_per_step", size, rule, fix=_MEND)
        # After steps of one batch a rank, which have no size, any others may follow.
        if size is not None and size != self.batches_per_step:
            fix = _FIXES["batches_per_step"]
            raise ResumeMismatch("batches_per_step", size, self.batches_per_step, fix=fix)
        consumed, saved = place.consumed_samples, Batching(**parameters)
        begun = 0 <= saved.origin * self.order.lanes <= consumed % self.num_samples
        _check_state(saved.origin, begun, "the origin of its plan must lie before its consumed_samples")
        self._change_batching(consumed, saved)
        return consumed

    def _change_batching(self, consumed: int, saved: Batching) -> None:
        new, first = replace(self.batching, origin=0), replace(saved, origin=0)
        epoch, count = divmod(consumed, self.num_samples)
        plan = self._plan(saved)
        # Of what came before it in this epoch the state says nothing: taken to have been the same.
        self._changes = [_Change(since=epoch * self.num_samples, batching=first)]
        self._stated = None
        if saved != first:
            since = epoch * self.num_samples + plan.count_at(saved.origin)
            self._changes.append(_Change(since=since, batching=saved))
        if new == first:
            return
        offset = plan.next_boundary(count)
        since = epoch * self.num_samples + plan.count_at(offset)
        if plan.count_at(offset) < self.num_samples:
            new = replace(new, origin=offset)
        self._changes.append(_Change(since=since, batching=new))

    def _plans(self, epoch: int) -> Iterator[tuple[Plan, int, int]]:
        """The plans of an epoch, each with the counts from and up to which it holds."""
        base, end = epoch * self.num_samples, (epoch + 1) * self.num_samples
        untils = [change.since for change in self._changes[1:]] + [end]
        for change, until in zip(self._changes, untils):
            since, until = max(base, change.since), min(until, end)
            if since < until:
                batching = change.batching if change.since >= base else replace(change.batching, origin=0)
                yield self._plan(batching), since, until

    def _plan(self, batching: Batching) -> Plan:
        return Plan(self.order, batching, seconds=self.seconds, name=self._name)

    def _name(self, epoch: int, position: int) -> str:
        return repr(self.keys(epoch, np.array([position]))[0])

    def _order_parameters(self) -> dict[str, Any]:
        return {"window": self.order.window, "lanes": self.order.lanes, "shuffle": self.order.shuffle}


def _check_state(value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError("state", value, rule, fix=_MEND)
