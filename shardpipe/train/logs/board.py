"""Curves for TensorBoard."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from shardpipe.store import writing
from shardpipe.train.logs.whole import WholeAppends

__all__ = ["Board"]


class Board:
    """The event file of one start of a run, in `folder`: what earlier ones drew from `first_step` on is not shown.

    Written as it comes, in the caller's thread; TensorBoard's own writer tells of a full disk by a trace in another.
    Raises StoreError.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a run in the order of their names, and knows them by "tfevents".
        self._file = WholeAppends(folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}")
        self._records = RecordWriter(self._file)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point of a curve."""
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._file.close()
