"""How one model is trained by one process or several: on engines that exist, behind one small interface.

meeting     how the processes find each other
world       the processes of a run: what they add up, agree on and wait for
precision   the numbers that forward and backward pass compute in, and the scale of fp16's gradients
engine      a model on all of them: copies whose gradients are averaged (ddp), or shares of one (fsdp)
"""

from shardpipe.train.engines.engine import Engine, engine_for
from shardpipe.train.engines.meeting import join_group
from shardpipe.train.engines.precision import Scale
from shardpipe.train.engines.world import World, seed_of

__all__ = ["Engine", "Scale", "World", "engine_for", "join_group", "seed_of"]
