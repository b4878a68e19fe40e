"""What lies on disk: shards, a row for every sample, and the manifest by which a dataset exists.

In: tars, and a store to read them from. Out: the samples in them with their byte ranges, an index of these, and whether
all is still as it was written. docs/format.md specifies it. Decodes audio only to see that it can be decoded.
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.dataset.index import Index, stage_index
    from shardpipe.dataset.listing import SHARD_LIST, is_list_of, list_place, write_list
    from shardpipe.dataset.manifest import MANIFEST, ShardInfo, Totals
    from shardpipe.dataset.parts import SCHEMA, Row, rows_batch
    from shardpipe.dataset.scan import TORN, Members, Scan, extras_json, inspect
    from shardpipe.dataset.shard import END_BYTES, ShardReader, ShardWriter, sample_bytes
    from shardpipe.dataset.verifying import VerifyReport, verify
else:
    # Nearly all of it needs pyarrow.
    __getattr__, __dir__ = lazily(
        __name__,
        index=["Index", "stage_index"],
        listing=["SHARD_LIST", "is_list_of", "list_place", "write_list"],
        manifest=["MANIFEST", "ShardInfo", "Totals"],
        parts=["SCHEMA", "Row", "rows_batch"],
        scan=["TORN", "Members", "Scan", "extras_json", "inspect"],
        shard=["END_BYTES", "ShardReader", "ShardWriter", "sample_bytes"],
        verifying=["VerifyReport", "verify"],
    )

__all__ = [
    "END_BYTES",
    "MANIFEST",
    "SCHEMA",
    "SHARD_LIST",
    "TORN",
    "Index",
    "Members",
    "Row",
    "Scan",
    "ShardInfo",
    "ShardReader",
    "ShardWriter",
    "Totals",
    "VerifyReport",
    "extras_json",
    "inspect",
    "is_list_of",
    "list_place",
    "rows_batch",
    "sample_bytes",
    "stage_index",
    "verify",
    "write_list",
]
