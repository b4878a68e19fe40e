"""Which replica is asked, which is left alone, and what a loop notices of that."""

from __future__ import annotations

import copy
import http.client
import os
import pickle
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from shardpipe import ShardLoader
from shardpipe.errors import StoreError
from shardpipe.loading import served
from shardpipe.loading.served import replicas as module
from shardpipe.loading.served.access import Access
from shardpipe.loading.served.addresses import servers_of
from shardpipe.loading.served.replicas import Replica, Replicas
from shardpipe.loading.served.watch import Watch
from shardpipe.store import Retry
from tests.forking import ended, forked, needs_fork
from tests.serve.faults import spoiling
from tests.serve.serving import Server, assert_same, batch_request, batches_of, running
from tests.speech import pack_speech

PLAN: dict[str, Any] = {"batch_size": 2, "seed": 4}
PATIENCE = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("replicas"), 120, seconds=(0.05, 0.3))


@pytest.fixture(scope="module")
def here(data: Path) -> list[Any]:
    return batches_of(data, **PLAN)


@pytest.fixture(scope="module")
def both(data: Path) -> Iterator[tuple[Server, Server]]:
    with running(data, "--name", "speech") as one, running(data, "--name", "speech") as other:
        yield one, other


@pytest.fixture
def pair(both: tuple[Server, Server]) -> Iterator[tuple[Server, Server]]:
    """Two servers, to do with what one likes."""
    yield both
    for server in both:
        assert server.process is not None
        if server.process.poll() is None:
            server.signal(signal.SIGCONT)
        else:
            server.start()


def at(*servers: Any) -> list[str]:
    return [f"{server.url}/speech" for server in servers]


def known(n: int) -> Replicas:
    """Replicas, all of them in use."""
    replicas = Replicas(servers_of([f"http://127.0.0.1:{7000 + i}/speech" for i in range(n)]))
    replicas.resolve()
    for replica in replicas.all:
        replicas.answered(replica)
    return replicas


def firsts(replicas: Replicas) -> list[str]:
    return [replicas.ranked(f"request {i}")[0].name for i in range(4000)]


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def test_another_replica_moves_few_requests() -> None:
    """To it alone, and about as many as come to each."""
    before, after = firsts(known(4)), firsts(known(5))
    moved = [new for old, new in zip(before, after) if old != new]
    assert set(moved) == {"http://127.0.0.1:7004"}
    assert 0.17 < len(moved) / len(before) < 0.23
    assert all(0.22 < before.count(name) / len(before) < 0.28 for name in set(before))


def test_one_that_is_left_alone_moves_its_own_requests_alone() -> None:
    replicas = known(4)
    before = firsts(replicas)
    gone = replicas.all[2]
    replicas.failed(gone, "it is silent")
    assert all(new == old for old, new in zip(before, firsts(replicas)) if old != gone.name)
    assert gone.name not in firsts(replicas)


def test_who_has_most_to_do_or_is_busy_comes_last() -> None:
    replicas = known(4)
    loaded, busy = replicas.all[:2]
    loaded.calls.update(dict.fromkeys(range(20), 0.0))
    busy.busy_until = time.monotonic() + 1000
    for i in range(100):
        assert replicas.ranked(f"request {i}")[2:] == [loaded, busy]


def test_one_call_in_twenty_is_made_twice_at_most() -> None:
    replicas = known(2)
    for calls in range(1, 1000):
        replicas.called(again=False)
        while replicas.may_hedge():
            pass
        assert replicas.num_hedges <= 0.05 * calls
    assert replicas.num_hedges == 49


@pytest.mark.parametrize(("number", "most"), [(1, 1.0), (2, 5.0)])
def test_probes_back_off(monkeypatch: pytest.MonkeyPatch, number: int, most: float) -> None:
    """Further where another replica is in use meanwhile."""
    monkeypatch.setattr(module.time, "monotonic", lambda: 1000.0)
    replicas = known(number)
    replica = replicas.all[0]
    waits = []
    for _ in range(12):
        replicas.failed(replica, "it is silent")
        replicas.failed(replica, "the next call", probed=False)
        waits.append(replica.probe_at - 1000)
        replicas.answered(replica)  # the probe was, and the call after it was not
    for i, wait in enumerate(waits):
        longest = min(most, 0.1 * 2**i)
        assert longest / 2 <= wait <= longest
    replicas.brought(replica, 0.1)
    replicas.failed(replica, "it is silent")
    assert replica.probe_at <= 1000.1


def test_many_calls_that_fail_at_once_are_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a server that is back at once is asked at once."""
    monkeypatch.setattr(module.time, "monotonic", lambda: 1000.0)
    replicas = known(1)
    (replica,) = replicas.all
    for _ in range(16):
        replicas.failed(replica, "Connection reset by peer")
    assert replica.probe_at <= 1000.1
    assert replicas.num_failures == 1


def test_servers_that_are_named_while_others_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last word is the user's."""
    asked, go_on = threading.Event(), threading.Event()
    ask = socket.getaddrinfo

    def slow(host: str, port: int, **options: Any) -> Any:
        if port == 7000:
            asked.set()
            assert go_on.wait(PATIENCE)
        return ask(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    service = served.Service("http://127.0.0.1:7000/speech")
    thread = threading.Thread(target=service.replicas.resolve)
    thread.start()
    assert asked.wait(PATIENCE)
    service.urls = ["http://127.0.0.1:7001/speech"]
    go_on.set()
    thread.join()
    assert [replica.name for replica in service.replicas.all] == ["http://127.0.0.1:7001"]


def test_looked_up_twice_at_once_a_replica_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)
    ask = socket.getaddrinfo

    def together(*arguments: Any, **options: Any) -> Any:
        both.wait(PATIENCE)
        return ask(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", together)
    replicas = Replicas(servers_of("http://127.0.0.1:7000/speech"))
    found: list[Replica] = []

    def resolve() -> None:
        replicas.resolve()
        found.extend(replicas.all)

    threads = [threading.Thread(target=resolve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_a_host_that_can_have_no_address(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    loader = ShardLoader(data, servers=[f"https://{'a' * 70}:7070/speech"], **PLAN)
    with pytest.raises(StoreError, match="a{70} cannot be found"):
        next(iter(loader))


def test_names_are_looked_up_often_while_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For whoever comes back may do so at another address."""
    asked: list[str] = []
    ask = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **options: asked.append(host) or ask(host, *rest, **options)
    )
    replicas = Replicas(servers_of(f"http://127.0.0.1:{closed_port()}/speech"))
    watch = Watch(replicas, Access(None, None), lambda _: None)
    watch.begin()
    try:
        assert eventually(lambda: len(asked) >= 3)
    finally:
        watch.end()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_names_that_are_found_again(
    data: Path, here: list[Any], pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not known at first, then one address, and after that another one."""
    ask = socket.getaddrinfo
    answers: list[Any] = [socket.gaierror(-3, "Temporary failure in name resolution")] * 2

    def getaddrinfo(host: str, port: int, **options: Any) -> Any:
        if host != "localhost":
            return ask(host, port, **options)
        if isinstance(answer := answers[0], Exception):
            answers.pop(0)
            raise answer
        return ask("127.0.0.1", answer, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    one, other = (int(server.url.rpartition(":")[2]) for server in pair)
    answers.append(one)
    got = []
    for batch in ShardLoader(data, servers=["http://localhost:7070/speech"], **PLAN):
        got.append(batch)
        if len(got) == 5:
            answers[:] = [other]
            pair[0].kill()
    assert_same(got, here)


def test_servers_change_while_a_loop_runs(data: Path, here: list[Any], pair: tuple[Server, Server]) -> None:
    loader = ShardLoader(data, servers=at(pair[0]), **PLAN)
    got = []
    for batch in loader:
        got.append(batch)
        if len(got) == 5:
            loader.servers = at(pair[1])
            pair[0].kill()
    assert_same(got, here)
    assert loader.servers == at(pair[1])


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_loop_hardly_waits_for_a_replica_that_is_gone(
    data: Path, here: list[Any], pair: tuple[Server, Server], how: signal.Signals
) -> None:
    """benchmarks say how long it does."""
    got = []
    longest, last = 0.0, time.monotonic()
    for batch in ShardLoader(data, servers=at(*pair), **PLAN):
        longest = max(longest, time.monotonic() - last)
        got.append(batch)
        if len(got) == 5:
            pair[0].signal(how)
        last = time.monotonic()
    assert_same(got, here)
    assert longest < 10


def test_one_that_is_back_is_asked_again(data: Path, here: list[Any], pair: tuple[Server, Server]) -> None:
    loader = ShardLoader(data, servers=at(*pair), **PLAN)
    pair[0].signal(signal.SIGSTOP)
    assert_same(list(loader), here)
    assert loader.service.replicas_up == 1
    pair[0].signal(signal.SIGCONT)
    pair[1].kill()
    assert_same(list(loader), batches_of(data, rounds=2, **PLAN)[len(here) :])


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardpipe.loading.served.opening.Retry", lambda: Retry(attempts=3, first_wait=0.1))


def test_when_all_are_gone(data: Path, here: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    with running(data, "--name", "speech") as server:
        loader = ShardLoader(data, servers=at(server), **PLAN)
        both = ShardLoader(data, servers=at(server), local=True, **PLAN)
        got, shared = [], []
        batches, others = iter(loader), iter(both)
        for _ in range(5):
            got.append(next(batches))
            shared.append(next(others))
        server.kill()
        with pytest.raises(StoreError, match="no server makes batches .*, after 3 attempts") as error:
            got.extend(batches)
        assert error.value.transient
        assert_same([*shared, *others], here)
        # What was not delivered comes later.
        server.start()
        assert_same([*got, *loader], here)


def test_busy_servers_are_waited_for(data: Path, here: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    with running(data, "--name", "speech", "--memory", "200KiB", "--keep", "1") as server:
        assert_same(batches_of(data, servers=at(server), **PLAN), here)
        assert counted(server, 'shardpipe_refusals_total{status="429"}') > 0


def counted(server: Server, name: str) -> float:
    connection = http.client.HTTPConnection(server.url.rpartition("/")[2])
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_what_is_begun_is_brought_to_its_end(data: Path, here: list[Any], pair: tuple[Server, Server]) -> None:
    """Under SIGTERM nothing breaks off."""
    loader = ShardLoader(data, servers=at(*pair), **PLAN)
    got, code = [], None
    for batch in loader:
        got.append(batch)
        if len(got) == 5:
            code = pair[0].end()
    assert_same(got, here)
    assert code == 0
    assert "Traceback" not in pair[0].log


def test_two_who_want_the_same_at_once(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    slow = "{slow: 'tests.serve.functions:slow'}"
    config.write_text(f"datasets: {{speech: {{data: '{data}', transforms: {slow}}}}}")
    fingerprint = ShardLoader(data, **PLAN).state_dict()["fingerprint"]
    body = batch_request(fingerprint, (0, 0, 0), transform="slow").body()
    with running("--config", config, "--keep", "1") as server:
        asking = [http.client.HTTPConnection(server.url.rpartition("/")[2]) for _ in range(5)]
        for connection in asking:
            connection.request("POST", "/batch", body)
        answers = [connection.getresponse() for connection in asking]
        assert {answer.status for answer in answers} == {200}
        assert len({answer.read() for answer in answers}) == 1
        for connection in asking:
            connection.close()
        assert counted(server, "shardpipe_making_seconds_count") == 1
        assert counted(server, "shardpipe_cache_hits_total") == 4
        assert eventually(lambda: counted(server, "shardpipe_memory_bytes") == 0)


@needs_fork
def test_a_forked_process_asks_for_itself(data: Path, here: list[Any], pair: tuple[Server, Server]) -> None:
    loader = ShardLoader(data, servers=at(*pair), **PLAN)
    batches = iter(loader)
    got = [next(batches) for _ in range(3)]

    def rest() -> None:
        assert_same(list(loader), here[3:])

    child = forked(rest)
    got.extend(batches)
    assert ended(child) == 0
    assert_same(got, here)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
@pytest.mark.parametrize("served", [False, True], ids=["servers", "a service"])
def test_a_copy_asks_for_itself(
    data: Path, here: list[Any], pair: tuple[Server, Server], copied: Callable[[Any], Any], served: bool
) -> None:
    place: tuple[Any, dict[str, Any]] = (
        (f"shardpipe+{at(pair[0])[0]}", {}) if served else (data, {"servers": at(*pair)})
    )
    loader = ShardLoader(place[0], **place[1], **PLAN)
    batches = iter(loader)
    got = [next(batches) for _ in range(3)]
    assert_same(list(copied(loader)), here[3:])
    assert_same([*got, *batches], here)


def left_behind() -> list[str]:
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("shardpipe")]
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return names + [str(link.readlink()) for link in links if link.is_symlink() and "socket" in str(link.readlink())]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not list open files")
@pytest.mark.parametrize("ends", [None, GeneratorExit, ZeroDivisionError, KeyboardInterrupt], ids=str)
def test_a_loop_leaves_nothing_behind(data: Path, pair: tuple[Server, Server], ends: Any) -> None:
    """At its end, and where it breaks, breaks down, or is interrupted while all servers are silent."""

    def loop() -> None:
        for i, _ in enumerate(ShardLoader(data, servers=at(*pair), **PLAN)):
            if i == 3 and ends is KeyboardInterrupt:
                for server in pair:
                    server.signal(signal.SIGSTOP)
                threading.Timer(1.0, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
            elif i == 3 and ends is not None:
                raise ends

    before = Counter(left_behind())
    # Who starts tests in the background has Ctrl-C ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        with pytest.raises(ends) if ends else nullcontext():
            loop()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    assert eventually(lambda: not Counter(left_behind()) - before), left_behind()


def test_a_proxy_that_spoils_all_it_passes_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wrong batch, but an error, or none of it noticed."""
    impatient(monkeypatch)
    with running(data, "--name", "speech") as server, spoiling(server.url, every=1, seed=0) as proxy:
        loader = ShardLoader(data, servers=at(proxy), **PLAN)
        with pytest.raises(StoreError, match="no server makes batches"):
            list(loader)
