"""What a run writes down and shows: metrics.jsonl, TensorBoard, the keys of every step, the terminal."""

from shardpipe.train.logs.display import Display
from shardpipe.train.logs.record import JsonLines, Recorder, cut_back, last_saved

__all__ = ["Display", "JsonLines", "Recorder", "cut_back", "last_saved"]
