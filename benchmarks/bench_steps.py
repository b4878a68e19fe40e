"""What do steps of a size cost? A rank's batches with `batches_per_step`, beside the same batches without it.

Where the number of ranks divides lanes and steps, a rank is given the very same batches either way. Compared are the
processor time of planning them, the rate at which they are fed to a loop that does nothing, and the rate of a loop that
trains a small model: with steps, each batch seeds dropout and says whether it ends its step; in the plain loop the
script counts them. Exits with 1 where steps cost what can be measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median
from time import perf_counter, process_time

import torch
from corpus import add_corpus_arguments, corpus_of, packed
from processes import alternate, ratio
from reporting import Checks, table, write_results
from torch import nn

from shardpipe import Batch, ShardLoader
from shardpipe.loading.work import works

SIZE, BATCH_SIZE = 16, 16
WORLDS = (1, 4)
LEAST = 0.98
"""Steps are to reach this share of the plain loop's rate."""

REPORT = """\
{about} Batches of {batch_size}, steps of {size}, 16 lanes; the batches of rank 0.
Medians of {rounds} alternating rounds, a ratio being the median of the rounds'.

{table}

## Checks

{checks}
"""


class Loops:
    """What is measured of one dataset on so many ranks; `size` None is the plain loop."""

    def __init__(self, data: str, world_size: int, size: int | None, batches: int) -> None:
        self._loader = ShardLoader(
            data,
            batch_size=BATCH_SIZE,
            window=128,
            lanes=16,
            rank=0,
            world_size=world_size,
            batches_per_step=size,
        )
        self._world_size = world_size
        self._times = SIZE // world_size
        self._batches = batches
        torch.manual_seed(0)
        self._model = nn.Sequential(nn.Conv1d(1, 64, 400, 320), nn.Dropout(0.1), nn.GELU(), nn.Conv1d(64, 64, 5))
        self._optimizer = torch.optim.AdamW(self._model.parameters())

    def plan(self) -> float:
        """Batches planned in a second of processor time."""
        sequence = self._loader._sequence
        begun = process_time()
        number = sum(1 for _ in works(sequence, sequence.steps(0, world_size=self._world_size), 0, self._world_size))
        return number / (process_time() - begun)

    def feed(self) -> float:
        """Batches a second to a loop that does nothing."""
        return self._rate(lambda *_: None)

    def train(self) -> float:
        """Batches a second to a loop that trains."""

        def step(batch: Batch, ends_step: bool) -> None:
            if batch.state.get("batches_per_step"):
                torch.default_generator.manual_seed(batch.seed)  # as shardpipe-train does on a CPU
            self._model(batch.audio[:, None, :48000]).square().mean().backward()
            if ends_step:
                self._optimizer.step()
                self._optimizer.zero_grad()

        return self._rate(step)

    def _rate(self, body: Callable[[Batch, bool], None]) -> float:
        loader = self._loader
        loader.load_state_dict(loader.state_dict() | {"consumed_samples": 0})
        batches: Iterator[Batch] = iter(loader)
        for batch in islice(batches, 8):  # not counted: threads begin
            body(batch, batch.ends_step)
        begun, number = perf_counter(), 0
        for number, batch in enumerate(islice(batches, self._batches), 1):
            plain = "batches_per_step" not in batch.state
            body(batch, number % self._times == 0 if plain else batch.ends_step)
        rate = number / (perf_counter() - begun)
        batches.close()  # type: ignore[attr-defined]
        return rate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser)
    parser.add_argument("--batches", type=int, default=96, help="of a rank, a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    corpus = corpus_of(options)
    data = str(packed(corpus))
    rows, checks = [], Checks()
    for world_size in WORLDS:
        loops = {size: Loops(data, world_size, size, options.batches) for size in (None, SIZE)}
        for what in ("plan", "feed", "train"):
            measures = {str(size): getattr(loop, what) for size, loop in loops.items()}
            for measure in measures.values():
                measure()  # not counted
            figures = alternate(options.rounds, measures)
            plain, steps = figures["None"], figures[str(SIZE)]
            share = ratio(steps, plain)
            name = f"{what}, {world_size} rank{'s' if world_size > 1 else ''}"
            rows.append([name, f"{median(plain):,.1f}", f"{median(steps):,.1f}", f"{share:.3f}"])
            checks.add(share >= LEAST, f"{name}: {share:.3f} of the plain loop's rate (at least {LEAST})")
    text = REPORT.format(
        about=corpus.describe() + ".",
        batch_size=BATCH_SIZE,
        size=SIZE,
        rounds=options.rounds,
        table=table(["", "plain, batches/s", "steps, batches/s", "ratio"], rows),
        checks=checks,
    )
    print(text)
    print(write_results("steps", text, packages=("shardpipe", "torch", "numpy")).name)
    return 0 if checks.good else 1


if __name__ == "__main__":
    sys.exit(main())
