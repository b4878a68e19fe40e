"""How much of a run: in samples, optimizer steps, sub-epochs or time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from shardpipe.errors import ConfigError

__all__ = ["Amount", "Done"]

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) *(samples?|steps?|sub-epochs?|s|min|h)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_COUNTED: dict[str, Literal["samples", "steps", "sub_epochs"]] = {
    "sample": "samples",
    "step": "steps",
    "sub-epoch": "sub_epochs",
}


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a run has done so far; a part of a sub-epoch counts as such."""

    samples: int
    steps: int
    sub_epochs: float


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A number of `samples`, optimizer `steps` or `sub_epochs`, or `seconds` on the clock."""

    count: float
    unit: Literal["samples", "steps", "sub_epochs", "seconds"]

    @classmethod
    def parse(cls, name: str, text: str, *, clock: bool) -> Amount:
        """Reads `5000samples`, `200steps`, `2sub-epochs` and, if `clock`, `90s`, `10min`, `2h`.

        Raises ConfigError about `name`.
        """
        rule = "it must be like 5000samples, 200steps or 2sub-epochs" + (", or 10min" if clock else "")
        match = _AMOUNT.fullmatch(text)
        if match is None or (match[2] in _SECONDS and not clock):
            raise ConfigError(name, text, rule)
        count, unit = float(match[1]), match[2].removesuffix("s") or "s"
        if unit in _SECONDS:
            return cls(count=count * _SECONDS[unit], unit="seconds")
        if not count.is_integer():
            raise ConfigError(name, text, f"a part of a {unit} does not exist")
        return cls(count=count, unit=_COUNTED[unit])

    def of(self, done: Done) -> float:
        """What is done, in this unit, which is none of time."""
        return float({"samples": done.samples, "steps": done.steps, "sub_epochs": done.sub_epochs}[self.unit])

    def __str__(self) -> str:
        unit = self.unit.replace("_", "-")
        return f"{self.count:.12g} {unit.removesuffix('s') if self.count == 1 else unit}"
