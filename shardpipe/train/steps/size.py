"""How many batches an optimizer step has: settled when a run starts, and kept whatever world it goes on in."""

from __future__ import annotations

from shardpipe.errors import ConfigError
from shardpipe.train.config import TrainConfig

__all__ = ["batches_per_step"]


def batches_per_step(
    config: TrainConfig, world_size: int, *, kept: int | None = None, by_ranks: bool = False
) -> int | None:
    """Batches of a step, all processes together; None for a run whose steps go by its ranks.

    kept: what the run that goes on has. by_ranks: it has none, for it was begun before steps had a size: each process
    then takes `accumulate` batches a step, unless the settings give it a size now.

    Raises ConfigError where the settings contradict what is kept, or each other.
    """
    wanted = config.batches_per_step
    if by_ranks and wanted is None:
        return None
    if kept is not None and wanted not in (None, kept):
        rule = f"the run takes steps of {kept} batches, whatever the number of processes"
        fix = "Leave it out, or begin a new run (--out) from a checkpoint of this one: --init-from, --resume-samples."
        raise ConfigError("batches_per_step", wanted, rule, fix=fix)
    size = kept or wanted or world_size * (config.accumulate or 1)
    times = -(-size // world_size)
    if config.accumulate not in (None, times):
        rule = f"a step of {size} batches takes {times} of each of {world_size} processes"
        raise ConfigError("accumulate", config.accumulate, rule, fix="Leave it out: it follows from both.")
    return size
