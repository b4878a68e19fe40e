"""What a client and a server of the data service say to each other; docs/service.md specifies it.

In: a batch that is wanted, or one that was made. Out: bytes, and the same again on the other side; ValueError for what
is not as it was sent. No code travels, and no path.

    request     a batch, as it is asked for
    answer      a batch, as it comes: a safetensors body; trees: what was collated, in it; unpadded: audio
    refusals    the errors of a batch
    about       what a server says of itself, and whether that will do for a loader
    digests     hashes
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.loading.wire.about import About, AboutCollate, AboutDataset, Wanted
    from shardpipe.loading.wire.answer import Source, packed, unpacked
    from shardpipe.loading.wire.digests import content_digest, digest_of
    from shardpipe.loading.wire.refusals import Refusal
    from shardpipe.loading.wire.request import FORMAT, NAME, BatchRequest, DatasetName, PlaceFields
else:
    # Most of them need torch.
    __getattr__, __dir__ = lazily(
        __name__,
        about=["About", "AboutCollate", "AboutDataset", "Wanted"],
        answer=["Source", "packed", "unpacked"],
        digests=["content_digest", "digest_of"],
        refusals=["Refusal"],
        request=["FORMAT", "NAME", "BatchRequest", "DatasetName", "PlaceFields"],
    )

__all__ = [
    "FORMAT",
    "NAME",
    "About",
    "AboutCollate",
    "AboutDataset",
    "BatchRequest",
    "DatasetName",
    "PlaceFields",
    "Refusal",
    "Source",
    "Wanted",
    "content_digest",
    "digest_of",
    "packed",
    "unpacked",
]
