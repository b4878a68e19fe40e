"""What goes on ahead of a loop: reading, decoding, copying, in threads and within bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from shardpipe.cache import ShardCache
from shardpipe.loading.feeding.pace import Pace
from shardpipe.loading.feeding.pipeline import Pipeline
from shardpipe.loading.feeding.prefetch import WindowPrefetch, has_room
from shardpipe.loading.feeding.sharing import Sharing
from shardpipe.loading.making import Arena, CudaCopier, Maker, Skipped, finished, pinned
from shardpipe.loading.read import Payload, Reader, coalesce
from shardpipe.loading.sequence import BatchSequence
from shardpipe.loading.served import ServedMaker
from shardpipe.loading.work import Work, works
from shardpipe.order import Step
from shardpipe.store import close

__all__ = ["Feed"]


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Makes the batches of a rank, ahead of whoever iterates; holds no place in the run."""

    sequence: BatchSequence
    reader: Reader
    cache: ShardCache | None
    maker: Maker
    pace: Pace
    served: ServedMaker | None
    """Servers, which make batches too, or all of them."""
    makers: int
    """Threads or processes that make batches here."""
    device: torch.device | None
    threads: int
    """That make batches, or wait for servers to."""
    prefetch: int
    prefetch_bytes: int

    def batches(
        self, steps: Iterator[Step], *, rank: int, world_size: int, given: int, stack: ExitStack
    ) -> Iterator[tuple[Work, Any, list[Skipped]]]:
        """(work, its batch, what of it was skipped), until `stack` is unwound; the rank was `given` so many batches of
        the first step before.
        """
        self.pace.begin()
        copier = CudaCopier(self.device) if self.device else None
        taken = None  # the first batch finds nothing ahead of it
        asked = time.perf_counter()
        for work, (batch, skipped) in self._pipeline(steps, rank, world_size, given, stack, copier):
            now = time.perf_counter()
            if taken is not None:
                self.pace.taken(now - asked, now - taken)
            taken = now
            yield work, copier.receive(batch) if copier else batch, skipped
            asked = time.perf_counter()

    def _pipeline(
        self,
        steps: Iterator[Step],
        rank: int,
        world_size: int,
        given: int,
        stack: ExitStack,
        copier: CudaCopier | None,
    ) -> Pipeline[Work, dict[int, Payload], tuple[Any, list[Skipped]]]:
        # Memory of its own for every loop: what one has lent is never another's, in a forked process least of all.
        straight = replace(self.maker, empty=pinned if copier else Arena(self.prefetch_bytes).empty)
        sharing = None if self.served is None else Sharing(self.served, self.makers)
        # Whose batches all come from servers reads nothing.
        parallel = self.reader.store.parallel if sharing is None or sharing.makes else 1
        stack.callback(close, self.reader.store)
        if self.served is not None:
            stack.enter_context(self.served.client.using())
        prefetch = None
        if self.cache is not None:
            stack.enter_context(closing(self.cache))
            if parallel > 1 and has_room(self.sequence, world_size, self.cache.limit_bytes):
                prefetch = WindowPrefetch(self.sequence, self.reader, rank, world_size)
                steps = stack.enter_context(closing(prefetch)).watch(steps)

        def made_here(work: Work, fetched: list[dict[int, Payload]]) -> tuple[Any, list[Skipped]]:
            make = self.pace.workers or straight
            with self.pace.watching():
                return make(work, {i: payload for some in fetched for i, payload in some.items()})

        def made(work: Work, fetched: list[dict[int, Payload]]) -> tuple[Any, list[Skipped]]:
            make = partial(made_here, work, fetched)
            result, skipped = sharing.made(work, straight.empty, make) if sharing is not None else make()
            batch = finished(work, result)
            if prefetch is not None:
                prefetch.made(work.end)
            return copier.send(batch) if copier else batch, skipped

        def reads(work: Work) -> list[Callable[[], dict[int, Payload]]]:
            """Those of a batch that are worth beginning ahead of its decoding: where each takes a round trip."""
            own = sharing is None or sharing.is_own(work)
            if parallel == 1 or not own:
                return []
            if prefetch is not None:
                prefetch.begun(work.end)
            pieces = coalesce(work.rows, self.reader.missing(work.rows))
            return [partial(self.reader.fetch, piece, work.rows) for piece in pieces]

        pipeline = Pipeline(
            works(self.sequence, steps, rank, world_size, given=given),
            reads=reads,
            make=made,
            size=self.maker.size,
            threads=self.threads,
            parallel=parallel,
            most_made=self.prefetch,
            most_bytes=self.prefetch_bytes,
        )
        return stack.enter_context(closing(pipeline))
