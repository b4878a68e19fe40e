"""Commands about a run's plan: at, where, plan.

Their annotations are read as objects, as in `options`.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardpipe.cli.console import print_json, print_table, time_text
from shardpipe.cli.options import Json, WorldSize, planned
from shardpipe.order import COUNT_MAX

if TYPE_CHECKING:
    from shardpipe.loading import BatchSequence, Turn

__all__ = ["at", "plan", "where"]


Steps = Annotated[
    bool,
    typer.Option(
        "--steps", help="Tell the step of the epoch, too, and which rank takes it: plans the epoch up to there."
    ),
]


@planned
def at(
    sequence: "BatchSequence",
    consumed: Annotated[int, typer.Option(metavar="N", help="Samples consumed so far.", min=0, max=COUNT_MAX - 1)],
    world_size: WorldSize = 1,
    steps: Steps = False,
    as_json: Json = False,
) -> None:
    """What a run was given at a count of consumed samples: epoch, super-window, batch and keys."""
    from shardpipe.loading import given_at

    turn = given_at(sequence, consumed, world_size=world_size)
    told = _told(sequence, turn, world_size, steps)
    if as_json:
        print_json(told)
        return
    rows = {"epoch": f"{turn.epoch}", "batch": _place_text(told, world_size), "keys": " ".join(turn.keys)}
    if step := told.get("step"):
        rows["step"] = _step_text(step)
        rows |= {f"rank {rank}": " ".join(keys) for rank, keys in enumerate(step["keys"])}
    print_table(sequence.index.store.url, rows)


@planned
def where(
    sequence: "BatchSequence",
    key: Annotated[str, typer.Argument(metavar="KEY", help="A sample's key.")],
    epochs: Annotated[int, typer.Option(help="How many epochs to look at.", min=1)] = 3,
    world_size: WorldSize = 1,
    steps: Steps = False,
    as_json: Json = False,
) -> None:
    """At which epoch, position, count and batch a sample comes."""
    from shardpipe.loading import visits

    found = [
        asdict(visit) | {"turn": visit.turn and _told(sequence, visit.turn, world_size, steps)}
        for visit in visits(sequence, key, epochs=epochs, world_size=world_size)
    ]
    if as_json:
        print_json(found)
        return
    rows = {}
    for visit in found:
        comes = "left out for its length"
        if turn := visit["turn"]:
            comes = _place_text(turn, world_size) + (f", {_step_text(turn['step'])}" if "step" in turn else "")
        rows[f"epoch {visit['epoch']}"] = f"position {visit['position']:,}: {comes}"
    print_table(key, rows)


def _told(sequence: "BatchSequence", turn: "Turn", world_size: int, steps: bool) -> dict[str, Any]:
    """A batch's turn, as --json prints it; with its step, and so its rank, if that is asked for."""
    from shardpipe.loading import step_of

    if not steps:
        return asdict(turn)
    step = asdict(step_of(sequence, turn, world_size=world_size))
    return asdict(turn) | {"rank": step.pop("rank"), "step": step}


def _place_text(turn: dict[str, Any], world_size: int) -> str:
    rank = "rank only by --steps" if turn["rank"] is None else f"rank {turn['rank']} of {world_size}"
    return (
        f"number {turn['batch']:,} of super-window {turn['super_window']:,}, lane {turn['lane']}, {rank}, "
        f"counts {turn['consumed_before']:,} to {turn['consumed_after']:,}"
    )


def _step_text(step: dict[str, Any]) -> str:
    return f"step {step['number']:,}, counts {step['consumed_before']:,} to {step['consumed_after']:,}"


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
