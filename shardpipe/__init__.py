"""Tar shards for speech training that stops anywhere and goes on as if it had never stopped."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardpipe.loading import Batch, Place, Sample, ShardLoader

__all__ = ["Batch", "Place", "Sample", "ShardLoader", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # These need torch, which takes seconds to import: packing and its worker processes do without.
    if name in ("Batch", "Place", "Sample", "ShardLoader"):
        from shardpipe import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
