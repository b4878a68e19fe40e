"""What a batch is asked for by: everything that decides what is in it, and nothing else.

docs/service.md specifies it. Two jobs that want the same batch send the same bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from shardpipe.store import Count, parsed, shallow

__all__ = ["FORMAT", "NAME", "SAMPLES_MAX", "BatchRequest", "DatasetName", "PlaceFields"]

FORMAT: Final = 1
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""Of a dataset, as it stands in a server's configuration and in addresses."""
SAMPLES_MAX = 1 << 16

_Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=f"^{NAME}$")]
_Function: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Seed: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class DatasetName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A dataset, by its name at the server, and the fingerprint of what the client knows by it."""

    name: _Name
    fingerprint: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class PlaceFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch's Place, where its collate asks for it."""

    epoch: Count
    consumed_samples: Count
    state: dict[str, Any]
    ends_step: bool = True
    seed: Count = 0


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One batch. `samples` are (number in `datasets`, the dataset's own epoch, ordinal in it), `weights` 0 for repeats
    that fill a step; the other fields are the loader's of these names.
    """

    format: Literal[1] = 1
    datasets: Annotated[list[DatasetName], msgspec.Meta(min_length=1, max_length=1000)]
    samples: Annotated[list[tuple[Count, Count, Count]], msgspec.Meta(min_length=1, max_length=SAMPLES_MAX)]
    weights: Annotated[list[Literal[0, 1]], msgspec.Meta(min_length=1, max_length=SAMPLES_MAX)]
    seed: _Seed
    dtype: Literal["float32", "int16"]
    channels: Count | Literal["error", "mix", "keep"]
    sample_rate: Count | None
    on_error: Literal["raise", "skip"]
    transform: _Function | None
    collate: _Function | None
    place: PlaceFields | None

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.samples):
            raise ValueError("it has another number of weights than of samples")
        if max(dataset for dataset, _, _ in self.samples) >= len(self.datasets):
            raise ValueError("a sample is of a dataset that it does not name")

    @classmethod
    def parse(cls, body: bytes) -> BatchRequest:
        """The request that a body holds. Raises ValueError."""
        request = parsed(body, cls)
        if request.place is not None:
            shallow(request.place.state)
        return request

    def body(self) -> bytes:
        return msgspec.json.encode(self)
