"""What `shardpipe doctor` finds before it says anything.

In: this machine, and a dataset if there is one. Out: what the machine has, how fast it reads, decodes and feeds, and
what to change. Every rate is measured, over a time that is given; samples that cannot be had are part of what is found.

    machine     versions, cores, memory, CUDA devices
    rates       what was done in how long, and all that was found
    decoding    a codec on one core; speech-like audio to try it on
    feeding     a sample of a dataset: read, decoded, and fed by a loader
    advising    what follows from all of that: pure
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.cli.examining.advising import Findings, advice
    from shardpipe.cli.examining.decoding import BUILT_IN, BUILT_IN_SECONDS, measure_codecs
    from shardpipe.cli.examining.feeding import measure_dataset
    from shardpipe.cli.examining.machine import PACKAGES, Machine, look_at
    from shardpipe.cli.examining.rates import Feed, Measured, Rate
else:
    # They import what decodes and what reads an index.
    __getattr__, __dir__ = lazily(
        __name__,
        advising=["Findings", "advice"],
        decoding=["BUILT_IN", "BUILT_IN_SECONDS", "measure_codecs"],
        feeding=["measure_dataset"],
        machine=["PACKAGES", "Machine", "look_at"],
        rates=["Feed", "Measured", "Rate"],
    )

__all__ = [
    "BUILT_IN",
    "BUILT_IN_SECONDS",
    "PACKAGES",
    "Feed",
    "Findings",
    "Machine",
    "Measured",
    "Rate",
    "advice",
    "look_at",
    "measure_codecs",
    "measure_dataset",
]
