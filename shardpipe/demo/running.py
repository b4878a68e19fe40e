"""The demo of resuming: a run that is killed and started again, beside one that nothing stopped."""

from __future__ import annotations

import signal
from pathlib import Path

from shardpipe.demo.compare import History
from shardpipe.demo.report import report
from shardpipe.demo.resumed import Resumed, compare
from shardpipe.demo.stage import Act, Stage

__all__ = ["run_demo"]

# In mid-epoch and between two checkpoints, for 5 epochs as for 1.
_KILL_AT = 0.55


def run_demo(out: Path, *, epochs: int = 5) -> Resumed:
    """Runs the demo in the folder `out`, shows the comparison on the terminal and writes out/report.html.

    An earlier demo's folder is used again, what is in it removed. Raises ConfigError for a folder that holds something
    else, and ShardpipeError if a run fails; whether the two runs came out the same is for the caller to look at.
    """
    stage = Stage(out=out, epochs=epochs)
    stage.prepare()
    samples = stage.pack_corpus()
    total = epochs * len(samples)
    stage.train("uninterrupted", run="uninterrupted", total=total)
    # SIGKILL, which no process can catch or prepare for.
    kill = Act(name="SIGKILL", when=lambda count: count >= _KILL_AT * total, do=lambda process: process.kill())
    stage.train("killed", run="killed", total=total, acts=[kill], ends=-signal.SIGKILL)
    killed = History.read(out / "killed")
    stage.train("resumed", run="killed", total=total)
    comparison = compare(out / "uninterrupted", killed, out / "killed", samples=samples, epochs=epochs)
    stage.finish(comparison, report(comparison, stage.commands))
    return comparison
