"""The numbers that a model's forward and backward pass compute in. Parameters and gradients' sums stay float32."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Annotated

import msgspec
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from shardpipe.train.config import PrecisionName

__all__ = ["Precision", "Scale"]

_TYPES: dict[PrecisionName, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By how much gradients are scaled, and for how many steps they have been finite since that was changed."""

    factor: Annotated[float, msgspec.Meta(ge=2.0**-100, le=2.0**100)]
    steps: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Precision:
    """One of the names above, on a kind of device.

    Gradients of fp16 are scaled, or the small ones would be 0: torch's GradScaler halves the scale where they become
    infinite and doubles it after 2,000 steps where they do not. That is its only state.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self._device = device
        self._type = _TYPES[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    @property
    def scale(self) -> Scale | None:
        """That of fp16's gradients; it may be set to what a checkpoint holds."""
        state = self.scaler.state_dict()
        return Scale(factor=state["scale"], steps=state["_growth_tracker"]) if state else None

    @scale.setter
    def scale(self, scale: Scale | None) -> None:
        if scale is not None and self.scaler.is_enabled():
            state = {"scale": scale.factor, "_growth_tracker": scale.steps}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **state})

    def autocast(self) -> AbstractContextManager[None]:
        """Within it, operations that can do with less than float32 take less."""
        return torch.autocast(self._device.type, self._type or torch.bfloat16, enabled=self._type is not None)

    def policy(self) -> MixedPrecisionPolicy:
        """The same for `fully_shard`, whose parameters are cast as they are gathered."""
        return MixedPrecisionPolicy(param_dtype=self._type, reduce_dtype=torch.float32)
