"""A run may move between batches made here, made by servers, and made by both, whenever it is started again."""

from __future__ import annotations

import re
from pathlib import Path

from tests.serve.serving import running
from tests.speech import pack_speech
from tests.training import FLAGS, events, finish, kill_at, markers, outcome

SAMPLES = 60


def test_killed_and_started_again_elsewhere_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    data = pack_speech(tmp_path, SAMPLES, shard_samples=8, seconds=(0.3, 1.0))
    flags = [*FLAGS, "--epochs", "2", "--sub-epochs", "2", "--save-every", "3steps", "--keep", "100"]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    finish(whole, [*flags, "--data", str(data), "--valid", str(data)])
    with running(data, "--name", "packed") as one, running(data, "--name", "packed") as other:
        urls = f"{one.url}/packed,{other.url}/packed"
        served = f"shardpipe+{one.url}/packed"
        ways = [
            ["--data", served, "--valid", served],
            ["--data", str(data), "--valid", str(data)],
            ["--data", str(data), "--valid", str(data), "--servers", urls],
            ["--data", str(data), "--valid", served, "--servers", urls, "--local"],
        ]
        for turn, way in enumerate(ways):
            kill_at(moved, 20 + 25 * turn, [*flags, *way])
        said = finish(moved, [*flags, *ways[2]])
    assert outcome_without_servers(moved) == outcome(whole)
    assert markers(moved) == markers(whole)
    assert (moved / "keys-rank0.jsonl").read_bytes() == (whole / "keys-rank0.jsonl").read_bytes()
    last = events(moved, "step")[-1]
    assert 1 <= last["servers"] <= 2
    assert {"server_retries", "server_hedges"} <= last.keys()
    assert re.search("[12] servers, [0-9]+ retries, [0-9]+ hedges", said)


def outcome_without_servers(out: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in event.items() if not k.startswith("server")} for event in outcome(out)]
