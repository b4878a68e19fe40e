"""Shards kept on a local disk, and the bound on what they take.

In: ranges of a shard that were read elsewhere. Out: the same ranges without another read, or nothing. It is never
trusted: who reads from it checks what comes.
"""

from shardpipe.cache.shards import Shard, ShardCache

__all__ = ["Shard", "ShardCache"]
