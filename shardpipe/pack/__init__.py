"""Making datasets: utterances into shards and index, and an index for tars that are there already.

In: a list, or tars, and a place. Out: a dataset there, whole or not at all; killed at any moment and run again, it goes
on. The same list gives the same bytes for any number of processes.
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.pack.packing import PackOptions, PackReport, Progress, pack
    from shardpipe.pack.tars import IndexReport, index_tars
else:
    # They need pyarrow.
    __getattr__, __dir__ = lazily(
        __name__,
        packing=["PackOptions", "PackReport", "Progress", "pack"],
        tars=["IndexReport", "index_tars"],
    )

__all__ = ["IndexReport", "PackOptions", "PackReport", "Progress", "index_tars", "pack"]
