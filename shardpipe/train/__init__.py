"""`shardpipe-train`: CTC training that resumes from a count of consumed samples.

In: a packed dataset and settings. Out: a run's folder, with checkpoints from which the same command goes on. It takes
its data as any other loop does, by `from shardpipe import ShardLoader`. Nothing here is for other wings.
"""

__all__: list[str] = []
