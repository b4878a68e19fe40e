"""Whatever happens to servers and to what they send: the stream is the local one, each sample once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shardpipe import ShardLoader
from tests.serve.faults import ANSWER_FAULTS, PROCESS_FAULTS, Trouble, spoiling
from tests.serve.serving import Server, running
from tests.speech import pack_speech

EPOCHS = 2
PLAN: dict[str, Any] = {"batch_size": 2, "seed": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("faults"), 180, seconds=(0.05, 0.3))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("other"), 40, seed=1, seconds=(0.05, 0.3))


def stream(loader: ShardLoader) -> Iterator[Any]:
    for _ in range(EPOCHS):
        yield from loader


def heard(batches: Iterator[Any]) -> tuple[str, Counter[str]]:
    """The hash of all that comes, and how often each sample does."""
    hashed, keys = hashlib.sha256(), Counter[str]()
    for batch in batches:
        told = (batch.keys, batch.lengths.tolist(), batch.weights.tolist(), batch.texts, batch.consumed_samples)
        hashed.update(repr(told).encode())
        hashed.update(batch.audio.numpy().tobytes())
        keys.update(batch.keys)
    return hashed.hexdigest(), keys


def under_faults(
    data: Path, other: Path, folder: Path, *, faults: int, every: int, times: int
) -> tuple[Counter[str], list[str]]:
    """What was done to how many answers and replicas while a run's epochs were heard, again and again until it was
    enough, and the hashes of what came.
    """
    with ExitStack() as stack:
        servers = [stack.enter_context(running(data, "--name", "speech", "--threads", 2)) for _ in range(3)]
        proxies = [
            stack.enter_context(spoiling(server.url, every=every, seed=seed)) for seed, server in enumerate(servers[1:])
        ]
        urls = [f"{one.url}/speech" for one in (servers[0], *proxies)]

        def wrong(server: Server) -> Server:
            return Server(str(other), "--name", "speech", log=folder / "wrong.log", bind=server.url.rpartition("/")[2])

        # The second one gets all from servers, the index too; no other dataset is there before it has been read.
        loaders = [
            ShardLoader(data, servers=urls, **PLAN),
            ShardLoader("shardpipe+" + urls[0].replace(port(urls[0]), f"{{{','.join(map(port, urls))}}}"), **PLAN),
            ShardLoader(data, servers=urls, local=True, **PLAN),
        ]
        states = [loader.state_dict() for loader in loaders]
        found: Counter[str] = Counter()
        hashes = []
        with Trouble(servers, wrong, seed=7, times=times) as trouble:
            while sum(found.values()) < faults or not trouble.is_over:
                turn = len(hashes) % len(loaders)
                loaders[turn].load_state_dict(states[turn])
                got, keys = heard(stream(loaders[turn]))
                assert set(keys.values()) == {EPOCHS}
                assert len(keys) == 180
                hashes.append(got)
                found = sum((proxy.faults for proxy in proxies), trouble.faults.copy())
            trouble.join()
        assert sum(loader.service.failures for loader in loaders if loader.service is not None)
        return found, hashes


def port(url: str) -> str:
    return url.split(":")[2].partition("/")[0]


def test_the_stream_under_faults_of_every_kind(data: Path, other: Path, tmp_path: Path) -> None:
    found, hashes = under_faults(data, other, tmp_path, faults=40, every=4, times=1)
    assert set(hashes) == {heard(stream(ShardLoader(data, **PLAN)))[0]}
    assert set(found) == {*ANSWER_FAULTS, *PROCESS_FAULTS}


@pytest.mark.soak
def test_the_stream_under_a_thousand_faults(data: Path, other: Path, tmp_path: Path) -> None:
    found, hashes = under_faults(data, other, tmp_path, faults=1000, every=4, times=12)
    print(f"{sum(found.values())} faults in {len(hashes)} runs: {dict(sorted(found.items()))}")
    assert set(hashes) == {heard(stream(ShardLoader(data, **PLAN)))[0]}
    assert set(found) == {*ANSWER_FAULTS, *PROCESS_FAULTS}
