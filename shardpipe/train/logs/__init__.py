"""What a run writes down and shows: metrics.jsonl, TensorBoard, the samples of every step, the terminal."""

from shardpipe.train.logs.display import Display, duration
from shardpipe.train.logs.keys import (
    Basis,
    KeyLine,
    KeyLog,
    chain_of,
    cut_back_keys,
    follows,
    key_logs,
    last_basis,
    last_count,
)
from shardpipe.train.logs.record import JsonLines, Recorder, cut_back, last_saved

__all__ = [
    "Basis",
    "Display",
    "JsonLines",
    "KeyLine",
    "KeyLog",
    "Recorder",
    "chain_of",
    "cut_back",
    "cut_back_keys",
    "duration",
    "follows",
    "key_logs",
    "last_basis",
    "last_count",
    "last_saved",
]
