"""The whole story on the embedded corpus: pack, train, kill, resume, and compare with a run that nothing stopped; and
that of a data service, whose replicas are killed and frozen.

In: a folder. Out: what every run left there, a table, and report.html with the picture.
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.demo.compare import Check, Comparison
    from shardpipe.demo.running import run_demo
    from shardpipe.demo.service import run_service_demo
else:
    # Packing needs pyarrow.
    __getattr__, __dir__ = lazily(
        __name__, compare=["Check", "Comparison"], running=["run_demo"], service=["run_service_demo"]
    )

__all__ = ["Check", "Comparison", "run_demo", "run_service_demo"]
