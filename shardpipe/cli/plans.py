"""Commands about a run's plan: at, where, plan.

Their annotations are read as objects, as in `options`.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from shardpipe.cli.console import print_json, print_table, time_text
from shardpipe.cli.options import Json, WorldSize, planned
from shardpipe.order import COUNT_MAX

if TYPE_CHECKING:
    from shardpipe.loading import BatchSequence

__all__ = ["at", "plan", "where"]


@planned
def at(
    sequence: "BatchSequence",
    consumed: Annotated[int, typer.Option(metavar="N", help="Samples consumed so far.", min=0, max=COUNT_MAX - 1)],
    world_size: WorldSize = 1,
    as_json: Json = False,
) -> None:
    """What a run was given at a count of consumed samples: epoch, step and keys."""
    from shardpipe.loading import given_at

    given = given_at(sequence, consumed, world_size=world_size)
    if as_json:
        print_json(asdict(given))
        return
    rows = {
        "epoch": f"{given.epoch}",
        "step": f"{given.step}, which took the count from {given.consumed_before:,} to {given.consumed_after:,}",
    }
    print_table(
        sequence.index.store.url, rows | {f"rank {rank}": " ".join(keys) for rank, keys in enumerate(given.keys)}
    )


@planned
def where(
    sequence: "BatchSequence",
    key: Annotated[str, typer.Argument(metavar="KEY", help="A sample's key.")],
    epochs: Annotated[int, typer.Option(help="How many epochs to look at.", min=1)] = 3,
    world_size: WorldSize = 1,
    as_json: Json = False,
) -> None:
    """At which epoch, position, count and step a sample comes."""
    from shardpipe.loading import visits

    found = visits(sequence, key, epochs=epochs, world_size=world_size)
    if as_json:
        print_json([asdict(visit) for visit in found])
        return
    rows = {}
    for visit in found:
        comes = f"step {visit.step}, rank {visit.rank}, counts {visit.consumed_before} to {visit.consumed_after}"
        comes = "left out for its length" if visit.step is None else comes
        rows[f"epoch {visit.epoch}"] = f"position {visit.position}, {comes}"
    print_table(key, rows)


@planned
def plan(
    sequence: "BatchSequence",
    world_size: WorldSize = 1,
    as_json: Json = False,
) -> None:
    """What an epoch costs: steps, padding, stragglers, shards a rank reads from."""
    from shardpipe.loading import plan_cost

    cost = plan_cost(sequence, world_size=world_size)
    if as_json:
        print_json(asdict(cost))
        return
    rows = {
        "steps": f"{cost.steps:,} of {world_size} ranks, {cost.batches:,} batches",
        "samples": f"{cost.samples:,}, {cost.excluded:,} left out for their length",
        "audio": time_text(cost.seconds),
        "padding": f"{cost.padding_percent:.2f} % of what is computed",
        "stragglers": f"{cost.straggler_percent:.2f} % of step time is waiting for the longest batch",
        "shards": f"{cost.shards_a_rank:.1f} a rank, of {cost.shards:,}; {cost.shards / world_size:.1f} were ideal",
        "order": f"window {sequence.order.window:,}, lanes {sequence.order.lanes}",
    }
    print_table(sequence.index.store.url, rows)
