"""How many batches an optimizer step has: settled when a run starts, and kept whatever world it goes on in."""

from __future__ import annotations

from shardpipe.errors import ConfigError
from shardpipe.train.config import TrainConfig

__all__ = ["batches_per_step"]

_FIX = "Leave it out, for it follows from both (the config.yaml of a run by version 0.1 has it)."


def batches_per_step(
    config: TrainConfig, world_size: int, *, kept: int | None = None, by_ranks: bool = False
) -> int | None:
    """Batches of a step, all processes together; None for a run whose steps go by its ranks.

    kept: what the run that goes on has, unless the settings name another size. by_ranks: it has none, for it was begun
    before steps had a size: each process then takes `accumulate` batches a step, if the settings name none now.

    Raises ConfigError where `accumulate` says otherwise.
    """
    wanted = config.batches_per_step
    if by_ranks and wanted is None:
        return None
    size = wanted or kept or world_size * (config.accumulate or 1)
    times = -(-size // world_size)
    if config.accumulate not in (None, times):
        rule = f"a step of {size} batches takes {times} of each of {world_size} processes"
        raise ConfigError("accumulate", config.accumulate, rule, fix=_FIX)
    return size
