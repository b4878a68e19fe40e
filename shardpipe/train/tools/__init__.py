"""What is done with the checkpoints of a run besides training: list them, export a model, average several.

listing     which there are, and what they say
export      a model's weights as one file of safetensors, with what it takes to use them beside it
"""

from shardpipe.train.tools.export import average, export
from shardpipe.train.tools.listing import list_checkpoints

__all__ = ["average", "export", "list_checkpoints"]
