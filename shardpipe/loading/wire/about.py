"""What a server says of itself, and whether it can make the batches of a loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from shardpipe.loading.wire.request import FORMAT

__all__ = ["About", "AboutCollate", "AboutDataset", "Wanted"]


class AboutCollate(msgspec.Struct, frozen=True):
    """A collate function: where it lies, as pkg.module:name, and whether it asks for the batch's place."""

    function: str
    place: bool


class AboutDataset(msgspec.Struct, frozen=True):
    """A dataset that a server has, and the functions that it has for it, by name."""

    fingerprint: str
    transforms: dict[str, str]
    collates: dict[str, AboutCollate]


class About(msgspec.Struct, frozen=True):
    """The document at /about."""

    format: int
    version: str
    digests: dict[str, str]
    """What comes of decoding and resampling there: `shardpipe.audio.digests`."""
    datasets: dict[str, AboutDataset]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a loader needs of a server; what is None, it does not ask for."""

    dataset: str
    fingerprint: str | None = None
    transform: str | None = None
    collate: str | None = None
    digests: Mapping[str, str] | None = None
    """Of this machine, as far as the dataset and the loader's options have to do with them."""

    def refused(self, about: About) -> str | None:
        """Why a server cannot make its batches; None if it can."""
        if about.format != FORMAT:
            return f"it speaks format {about.format} of requests, and {FORMAT} is asked: use one version of shardpipe"
        dataset = about.datasets.get(self.dataset)
        if dataset is None:
            return f"it has no dataset {self.dataset!r}, but {', '.join(sorted(about.datasets)) or 'none'}"
        if self.fingerprint not in (None, dataset.fingerprint):
            return (
                f"its {self.dataset!r} is another dataset, of fingerprint {dataset.fingerprint[:16]}..., and the "
                f"loader's is {(self.fingerprint or '')[:16]}...: have both read the same"
            )
        if self.transform is not None and self.named(dataset.transforms, self.transform) is None:
            return _unknown("transform", self.transform, dataset.transforms)
        collates = {name: collate.function for name, collate in dataset.collates.items()}
        if self.collate is not None and self.named(collates, self.collate) is None:
            return _unknown("collate", self.collate, collates)
        other = sorted(part for part, digest in (self.digests or {}).items() if about.digests.get(part) != digest)
        if other:
            return (
                f"it does not make the same floats here and there ({', '.join(other)}): have the same decoders on "
                'machines of one kind, or allow it by digests="any"'
            )
        return None

    @staticmethod
    def named(functions: Mapping[str, str], wanted: str) -> str | None:
        """The name of a function that is wanted by its name, or by where it lies."""
        return wanted if wanted in functions else next((n for n, where in functions.items() if where == wanted), None)

    def asks_place(self, about: About) -> bool:
        """Whether the collate wants the place of a batch."""
        collates = about.datasets[self.dataset].collates
        name = self.named({name: collate.function for name, collate in collates.items()}, self.collate or "")
        return name is not None and collates[name].place


def _unknown(kind: str, wanted: str, there: Mapping[str, str]) -> str:
    known = ", ".join(f"{name} ({where})" for name, where in sorted(there.items())) or "none"
    return f"it has no {kind} {wanted!r}, but {known}: name it in the server's configuration"
