"""What fsspec opens: byte ranges read, files uploaded, each request within its time."""

from shardpipe.store.remote.reading import FsspecStore
from shardpipe.store.remote.writing import Uploads

__all__ = ["FsspecStore", "Uploads"]
