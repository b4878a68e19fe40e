"""Bytes from anywhere, and to anywhere: a local disk, and whatever fsspec opens.

In: a path or a URL, and names below it. Out: sizes, versions and byte ranges, or one StoreError that says whether
another attempt may help; and files that are there whole or not at all. The only wing that knows fsspec, credentials
and faults of networks.

A store is rooted at a dataset's folder; names are relative to it, as the manifest writes them, or absolute. Those in
`testing` count, slow down and break the reads of another one.

Public, for stores, loops and tests of others: Store, Stat, Over, open_store, close, LocalStore, FsspecStore, Retry,
RetryingStore, CountingStore, FailingStore, Fault, SlowStore, abandon_when, abandoned. The other names are for
shardpipe's own wings.
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import abandon_when, abandoned, lazily

if TYPE_CHECKING:
    from shardpipe.store.base import Over, Stat, Store, close
    from shardpipe.store.elsewhere import resolving
    from shardpipe.store.local import LocalStore
    from shardpipe.store.opening import open_store
    from shardpipe.store.outside import Count, converted, json_object, parsed, shallow
    from shardpipe.store.places import checked_url, is_url, is_utf8, local_path, named, only_local
    from shardpipe.store.publish import flush, put_in_place, write_file, writing
    from shardpipe.store.redact import shown_url, split_url
    from shardpipe.store.remote import FsspecStore, Uploads
    from shardpipe.store.retry import Retry, RetryingStore, attempted
    from shardpipe.store.testing import CountingStore, FailingStore, Fault, SlowStore
    from shardpipe.store.urls import find_urls, scheme_of, shown_in
else:
    __getattr__, __dir__ = lazily(
        __name__,
        base=["Over", "Stat", "Store", "close"],
        elsewhere=["resolving"],
        local=["LocalStore"],
        opening=["open_store"],
        outside=["Count", "converted", "json_object", "parsed", "shallow"],
        places=["checked_url", "is_url", "is_utf8", "local_path", "named", "only_local"],
        publish=["flush", "put_in_place", "write_file", "writing"],
        redact=["shown_url", "split_url"],
        remote=["FsspecStore", "Uploads"],
        retry=["Retry", "RetryingStore", "attempted"],
        testing=["CountingStore", "FailingStore", "Fault", "SlowStore"],
        urls=["find_urls", "scheme_of", "shown_in"],
    )

__all__ = [
    "Count",
    "CountingStore",
    "FailingStore",
    "Fault",
    "FsspecStore",
    "LocalStore",
    "Over",
    "Retry",
    "RetryingStore",
    "SlowStore",
    "Stat",
    "Store",
    "Uploads",
    "abandon_when",
    "abandoned",
    "attempted",
    "checked_url",
    "close",
    "converted",
    "find_urls",
    "flush",
    "is_url",
    "is_utf8",
    "json_object",
    "local_path",
    "named",
    "only_local",
    "open_store",
    "parsed",
    "put_in_place",
    "resolving",
    "scheme_of",
    "shallow",
    "shown_in",
    "shown_url",
    "split_url",
    "write_file",
    "writing",
]
