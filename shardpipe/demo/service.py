"""The demo of the data service: its replicas are killed, frozen and started anew while a run trains by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shardpipe.demo.replicas import DATASET, Replica, running
from shardpipe.demo.served import FROZEN, GOES_ON, KILLED, LISTENS, STARTED, Served, compare_served
from shardpipe.demo.service_report import service_report
from shardpipe.demo.stage import Act, Stage

__all__ = ["run_service_demo"]

# Shares of the run.
_KILL_AT, _FREEZE_AT, _GO_ON_AT = 0.3, 0.55, 0.8


def run_service_demo(out: Path, *, epochs: int = 5) -> Served:
    """Runs the demo of the service in the folder `out`, and shows what came of it as `run_demo` does.

    Raises ConfigError and ShardpipeError as `run_demo` does, the latter also if a replica fails by itself.
    """
    stage = Stage(out=out, epochs=epochs)
    stage.prepare()
    samples = stage.pack_corpus()
    total = epochs * len(samples)
    alone = stage.train("alone", run="alone", total=total)
    first, second = (Replica(name, stage.data, out / f"replica-{name}.log") for name in "AB")
    with running(first, second):
        stage.commands += [(replica.command, None) for replica in (first, second)]
        url = f"shardpipe+http://127.0.0.1:{{{first.port},{second.port}}}/{DATASET}"
        acts = _acts(stage, first, second, total)
        served = stage.train("served", run="served", total=total, data=url, acts=acts)
    comparison = compare_served(
        out / "alone", out / "served", alone=alone, served=served, samples=samples, epochs=epochs
    )
    stage.finish(comparison, service_report(comparison, stage.commands))
    return comparison


def _acts(stage: Stage, first: Replica, second: Replica, total: int) -> list[Act]:
    """What befalls the replicas. For a while there is none: the first is started anew when the second is frozen."""

    def at(share: float) -> Callable[[int], bool]:
        return lambda count: count >= share * total

    def act(name: str, when: Callable[[int], bool], do: Callable[[], None]) -> Act:
        def told(_: object) -> None:
            do()
            stage.console.print(name)

        return Act(name=name, when=when, do=told)

    return [
        act(KILLED, at(_KILL_AT), first.kill),
        act(FROZEN, at(_FREEZE_AT), second.freeze),
        act(STARTED, at(_FREEZE_AT), first.start),
        act(LISTENS, lambda _: first.listens, lambda: None),
        act(GOES_ON, at(_GO_ON_AT), second.let_go_on),
    ]
