"""Making datasets: utterances into shards and index, and an index for tars that are there already."""

from shardpipe.pack.packing import PackOptions, PackReport, Progress, pack
from shardpipe.pack.tars import IndexReport, index_tars

__all__ = ["IndexReport", "PackOptions", "PackReport", "Progress", "index_tars", "pack"]
