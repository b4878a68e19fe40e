"""From what a user says of servers to a client of theirs, and to who makes batches there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, NamedTuple

from shardpipe.audio import digests as own_digests
from shardpipe.dataset import Index
from shardpipe.errors import StoreError
from shardpipe.loading.making import Maker
from shardpipe.loading.served.access import Access
from shardpipe.loading.served.addresses import servers_of
from shardpipe.loading.served.asking import Client
from shardpipe.loading.served.index import ServedStore
from shardpipe.loading.served.making import ServedMaker
from shardpipe.loading.served.replicas import Replicas
from shardpipe.loading.served.watch import Watch
from shardpipe.loading.wire import About, DatasetName, Wanted
from shardpipe.settings import check
from shardpipe.store import Retry

__all__ = ["Digests", "Service", "ServiceCounts"]

Digests = Literal["same", "any"]


class ServiceCounts(NamedTuple):
    """What has come of asking servers, since the loader was made."""

    calls: int
    """Requests, those for the index and those that were made twice among them."""
    answers: int
    failures: int
    """Times that a replica in use was left alone."""
    retries: int
    """Requests that another one had to be asked for."""
    hedges: int
    """Requests made of a second replica because the first one was slow."""
    replicas: int
    """Processes behind the servers' names."""
    replicas_up: int
    """Those of them that are in use now."""


class Service:
    """The servers of a loader: the index of their dataset, who makes its batches, and what has come of asking them.

    Raises ConfigError for addresses, files and functions that cannot be.
    """

    def __init__(
        self,
        servers: str | Iterable[str],
        *,
        token_file: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        digests: Digests = "same",
        retry: Retry | None = None,
    ) -> None:
        given = servers_of(servers)
        check("digests", digests, digests in ("same", "any"), 'it must be "same" or "any"')
        self._digests = digests
        self._wanted = Wanted(dataset=given[0].name)
        self.replicas = Replicas(given)
        access = Access(token_file, tls_ca)
        self.client = Client(self.replicas, access, Watch(self.replicas, access, self._refused), retry or Retry())

    def index(self) -> Index:
        """That of the servers' dataset. Raises StoreError, also where servers have several by this name."""
        with self.client.using():
            self.client.wait_for_all()
            found = {replica.name: replica.fingerprint(self._wanted.dataset) for replica in self.replicas.all}
            if len(set(found.values()) - {None}) > 1:
                told = ", ".join(f"{name}: {fingerprint}" for name, fingerprint in found.items())
                raise StoreError(
                    f"these have several datasets by the name {self._wanted.dataset!r} ({told})",
                    url=self.replicas.url,
                    fix="Have all servers read the same, or name those that do.",
                )
            return Index.load(ServedStore(self.client))

    def maker(self, index: Index, maker: Maker, *, transform: str | None, collate: str | None) -> ServedMaker:
        """Who makes the batches of a dataset as `maker` would, by functions that the servers know."""
        rates = set(index.totals.sample_rates)
        parts = {*index.totals.codecs}
        if maker.form.sample_rate is not None and rates != {maker.form.sample_rate}:
            parts.add("resample")
        own = {part: digest for part, digest in own_digests().items() if part in parts and self._digests == "same"}
        self._wanted = replace(
            self._wanted, fingerprint=index.fingerprint, transform=transform, collate=collate, digests=own
        )
        return ServedMaker(
            client=self.client,
            dataset=DatasetName(self._wanted.dataset, index.fingerprint),
            maker=maker,
            transform=transform,
            collate=collate,
            asks_place=self._asks_place,
        )

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.replicas.servers]

    @urls.setter
    def urls(self, urls: str | Iterable[str]) -> None:
        servers = servers_of(urls)
        check("servers", servers[0].name, servers[0].name == self._wanted.dataset, "it must be the same dataset")
        self.replicas.servers = servers
        self.replicas.resolve()

    def counts(self) -> ServiceCounts:
        replicas = self.replicas
        return ServiceCounts(
            calls=replicas.num_calls,
            answers=replicas.num_answers,
            failures=replicas.num_failures,
            retries=replicas.num_retries,
            hedges=replicas.num_hedges,
            replicas=len(replicas.all),
            replicas_up=len(replicas.up),
        )

    def _refused(self, about: About) -> str | None:
        return self._wanted.refused(about)

    def _asks_place(self) -> bool:
        """Whether the collate wants a batch's place; where no server has said anything yet, it may."""
        said = [replica.about for replica in self.replicas.up if replica.about is not None]
        return self._wanted.collate is not None and (not said or self._wanted.asks_place(said[0]))
