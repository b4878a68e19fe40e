"""What a loop gets: a batch, and the samples that transforms and collate functions see of it."""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy.typing as npt
import torch

__all__ = ["Batch", "Sample"]


@dataclass(kw_only=True, slots=True)
class Sample:
    """One utterance as a transform gets it."""

    key: str
    text: str
    audio: npt.NDArray[Any]
    """[T], with channels="keep" [C, T]; float32 in [-1, 1] or int16."""
    sample_rate: int
    extras: dict[str, Any]
    weight: float = 1.0
    """0 for a repeat that fills a step, and for a sample that was skipped; else 1."""


class _Keys(list[str]):
    """The samples' keys, as a list; called, what a mapping's `keys` gives: a batch is both."""

    def __call__(self) -> KeysView[str]:
        return dict.fromkeys(_FIELDS).keys()


@dataclass(eq=False, init=False)
class Batch(Mapping[str, Any]):
    """What one rank takes in one micro-step: B samples, padded at the end with silence to the longest, T.

    It is a mapping of its fields as well, and can be made of such a mapping, which is how frameworks move what they do
    not know: `batch["audio"]` is `batch.audio`, and `batch.keys` is a list that `batch.keys()` makes the fields' names.
    """

    audio: torch.Tensor
    """[B, T], with channels="keep" [B, C, T]; float32 in [-1, 1] or int16; on the loader's device."""
    lengths: torch.Tensor
    """[B], int64: each sample's length before padding."""
    weights: torch.Tensor
    """[B], float32: 1 for a sample that counts, 0 for a repeat or a skipped sample."""
    keys: list[str]  # type: ignore[assignment]
    ordinals: list[int]
    """Each sample's place in the whole dataset, from 0: with the epoch it says which one this is, whatever its key."""
    texts: list[str]
    extras: list[dict[str, Any]]
    sample_rate: int
    epoch: int
    consumed_samples: int
    """Of the run, all ranks together, after this step; with a step's earlier batches still before it."""
    state: dict[str, Any]
    """What `ShardLoader.load_state_dict` takes to go on after this step, or, with a step's earlier batches, at its
    start; JSON-able. What the last trained batch carries is right, however far ahead something has fetched."""
    ends_step: bool
    """Whether it is this rank's last batch of the step: the optimizer's turn."""
    seed: int
    """The batch's own on any world, below 2**62: `torch.manual_seed(batch.seed)` makes dropout its own, too."""

    def __init__(self, given: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        if given is not None:
            named = {**{name: given[name] for name in given}, **named}
        if named.keys() != _NAMES:
            raise TypeError(f"a Batch has the fields {', '.join(_FIELDS)}, and no others")
        self.__dict__.update(named, keys=_Keys(named["keys"]))

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on a device."""
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _TENSORS}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The batch with its tensors in page-locked memory, from which a device copies by itself."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})

    def __getitem__(self, name: str) -> Any:
        if name not in _FIELDS:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(_FIELDS)

    def __len__(self) -> int:
        return len(_FIELDS)

    # By identity: tensors are not equal or unequal as a whole.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


_FIELDS = tuple(field.name for field in fields(Batch))
_NAMES = set(_FIELDS)
_TENSORS = ("audio", "lengths", "weights")
