"""Batches that a service makes: for a loader, the same as a Maker of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from shardpipe.loading.making import Empty, Maker, Skipped
from shardpipe.loading.served.asking import Client
from shardpipe.loading.served.connection import Body, Head
from shardpipe.loading.served.exchange import Question
from shardpipe.loading.wire import BatchRequest, DatasetName, PlaceFields, digest_of, unpacked
from shardpipe.loading.work import Work

__all__ = ["ServedMaker"]


@dataclass(frozen=True, kw_only=True)
class ServedMaker:
    """Has a service make batches as `maker` would; by any thread, which waits for them."""

    client: Client
    dataset: DatasetName
    maker: Maker
    transform: str | None
    collate: str | None
    asks_place: Callable[[], bool]
    """Whether the collate wants the place of a batch."""

    @property
    def is_up(self) -> bool:
        """Whether a server is there to be asked."""
        return bool(self.client.replicas.up)

    @property
    def is_a_mistake(self) -> bool:
        """Whether all servers have refused from the start, for reasons that no waiting mends."""
        replicas = self.client.replicas
        return not replicas.num_answers and all(one.fault is not None and one.lasts for one in replicas.all)

    def __call__(self, work: Work, empty: Empty, *, patient: bool = True) -> tuple[Any, list[Skipped]]:
        """The batch, in memory from `empty`, and what of it was skipped. Raises what making it raises, and StoreError
        if no server makes it; not `patient`, as soon as each has been asked.
        """
        maker = self.maker
        if self.transform is None and self.collate is None:
            maker.check_rates(work.rows)
        body = self._request(work).body()
        key = digest_of(body)

        def take(head: Head, source: Body) -> tuple[Any, list[Skipped]]:
            return unpacked(source, head.length, request=key, dtype=maker.form.dtype, empty=empty)

        question = Question(
            method="POST",
            path="/batch",
            key=key,
            take=take,
            body=body,
            # Its shard may be damaged there alone.
            doubt=lambda answer: any(sample.damaged for sample in answer[1]),
        )
        made, skipped = self.client.answer(question, patient=patient)
        return made, skipped

    def _request(self, work: Work) -> BatchRequest:
        form, place = self.maker.form, work.place
        return BatchRequest(
            datasets=[self.dataset],
            samples=[(0, epoch, ordinal) for epoch, ordinal in zip(work.epochs, work.ordinals)],
            weights=[1 if weight else 0 for weight in work.weights],
            seed=self.maker.seed,
            dtype=form.dtype,  # type: ignore[arg-type]
            channels=form.channels,
            sample_rate=form.sample_rate,
            on_error="skip" if self.maker.skip_errors else "raise",
            transform=self.transform,
            collate=self.collate,
            place=PlaceFields(**asdict(place)) if self.asks_place() else None,
        )
