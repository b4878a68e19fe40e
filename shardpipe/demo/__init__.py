"""The whole story on the embedded corpus: pack, train, kill, resume, and compare with a run that nothing stopped."""

from shardpipe.demo.compare import Check, Comparison
from shardpipe.demo.running import run_demo

__all__ = ["Check", "Comparison", "run_demo"]
