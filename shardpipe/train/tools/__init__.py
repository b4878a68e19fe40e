"""What is done with the checkpoints of a run besides training: list them, export a model, average several.

listing     which there are, and what they say
weights     a model's weights as one file of safetensors, with what it takes to use them beside it
"""

from shardpipe.train.tools.listing import list_checkpoints
from shardpipe.train.tools.weights import average, export

__all__ = ["average", "export", "list_checkpoints"]
