"""`shardpipe serve --check` and `shardpipe top`: what they print, and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardpipe import ShardLoader
from tests.serve.serving import ROOT, Server, running
from tests.speech import pack_speech

DEAD = "http://127.0.0.1:9"
"""Where nobody listens."""
_MAIN = "from shardpipe.cli import main; main()"


def shardpipe(*arguments: object, code: int = 0, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _MAIN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("serving"), 24, shard_samples=7)


@pytest.fixture(scope="module")
def servers(data: Path) -> Iterator[tuple[Server, Server]]:
    with running(data, "--name", "speech") as one, running(data, "--name", "speech") as other:
        yield one, other


def test_check_says_what_can_be_served(data: Path, tmp_path: Path) -> None:
    assert "24 samples" in shardpipe("serve", data, "--check").stdout
    functions = {"transforms": {"louder": "tests.serve.functions:louder"}, "collates": {}}
    file = tmp_path / "serve.yaml"
    file.write_text(json.dumps({"datasets": {"a": {"data": str(data), **functions}, "b": {"data": str(data)}}}))
    said = " ".join(shardpipe("serve", "--config", file, "--check").stdout.split())
    assert "a 24 samples" in said
    assert "b 24 samples" in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "either it or --config must say what to serve"),
        (("DATA", "--config", "serve.yaml"), 2, "either it or --config must say what to serve"),
        (("--config", "serve.yaml", "--name", "x"), 2, "the datasets of --config have names already"),
        (("--config", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("nowhere",), 1, "nowhere/shardindex.json"),
        (("DATA", "--name", "a/b"), 2, "name is 'a/b', but it must be letters, digits"),
        (("DATA", "--name", ""), 0, ""),
        (("DATA", "--bind", "7070"), 2, "bind is '7070', but it must be like 127.0.0.1:7070"),
        (("DATA", "--bind", "127.0.0.1:70700"), 2, "it must be like 127.0.0.1:7070"),
        (("DATA", "--bind", "0.0.0.0:7070"), 2, "must have TLS and a token"),
        (("DATA", "--memory", "much"), 2, "memory is 'much', but it must be a number of bytes"),
        (("DATA", "--keep", "1XB"), 2, "keep is '1XB', but it must be a number of bytes"),
        (("DATA", "--cache-bytes", "1GiB"), 2, "it needs a cache_dir"),
        (("DATA", "--threads", "0"), 2, "--threads"),
        (("DATA", "--tls-cert", "cert.pem"), 2, "tls_cert and it go together"),
    ],
)
def test_check_refuses_options_in_one_line(
    data: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    (tmp_path / "serve.yaml").write_text(json.dumps({"datasets": {"a": {"data": str(data)}}}))
    given = [str(data) if one == "DATA" else one for one in arguments]
    failed = shardpipe("serve", *given, "--check", code=code, folder=tmp_path)
    assert words in " ".join(failed.stderr.split())
    if code and "--threads" not in given:  # which typer's own box tells
        assert len(failed.stderr.splitlines()) == 1
        assert not failed.stdout


@pytest.mark.parametrize(
    ("config", "code", "words"),
    [
        ("datasets: {a: {data: DATA, threads: 3}}", 2, "`threads`"),
        ("dataset: {a: {data: DATA}}", 2, "`dataset`"),
        ("datasets: {a: {}}", 2, "`data`"),
        ("datasets: {}", 2, "it must name a dataset"),
        ("datasets: [", 2, "it cannot be read"),
        ("", 2, "it cannot be read"),
        ("datasets: {a: {data: nowhere}}", 1, "nowhere/shardindex.json"),
        ("datasets: {a/b: {data: DATA}}", 2, "name is 'a/b'"),
        ("datasets: {a: {data: DATA, transforms: {x: nowhere.at.all:f}}}", 2, "Is its folder in PYTHONPATH?"),
        ("datasets: {a: {data: DATA, transforms: {x: tests.serve.functions:f}}}", 2, "it cannot be imported"),
        (
            "datasets: {a: {data: DATA, transforms: {x: tests.serve.functions}}}",
            2,
            "it must be like pkg.module:function",
        ),
        ("datasets: {a: {data: DATA, collates: {x: tests.serve.functions:__doc__}}}", 2, "it must be a function"),
    ],
)
def test_check_refuses_a_configuration_in_one_line(
    data: Path, tmp_path: Path, config: str, code: int, words: str
) -> None:
    (tmp_path / "serve.yaml").write_text(config.replace("DATA", str(data)))
    failed = shardpipe("serve", "--config", tmp_path / "serve.yaml", "--check", code=code)
    assert words in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert not failed.stdout


def top(*arguments: object, code: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shardpipe("top", *arguments, "--json", code=code).stdout)
    return found


def test_top_tells_what_servers_do(data: Path, servers: tuple[Server, Server]) -> None:
    ports = ",".join(server.url.rpartition(":")[2] for server in servers)
    url = f"http://127.0.0.1:{{{ports}}}"
    assert [(row["datasets"], row["batches"]) for row in top(url, "--every", 0.05)] == [(["speech"], 0)] * 2
    batches = [batch for _ in range(2) for batch in ShardLoader(f"shardpipe+{url}/speech", batch_size=5, seed=1)]
    [*_] = ShardLoader(f"shardpipe+{url}/speech", batch_size=5, seed=1)
    rows = top(f"{url}/speech", f"shardpipe+{url}/other", DEAD, "--every", 0.05, code=1)
    assert [row["server"] for row in rows] == [*(server.url for server in servers), DEAD]
    assert [row["state"] for row in rows] == ["up", "up", "down"]
    assert rows[2]["why"] == "Connection refused"
    assert sum(row["batches"] for row in rows[:2]) == len(batches) + 5
    assert sum(row["samples"] for row in rows[:2]) == 3 * 24
    assert sum(row["kept_bytes"] for row in rows[:2]) > 0
    for row in rows[:2]:
        assert (row["batches_per_s"], row["queue"], row["memory_bytes"], row["refusals"]) == (0.0, 0, 0, {})
        assert row["connections"] >= 1
    assert any(0 < (row["hits_share"] or 0) < 1 for row in rows[:2])
    assert any((row["making_seconds"] or 0) > 0 for row in rows[:2])
    assert rows[2]["batches"] is rows[2]["batches_per_s"] is None


def test_top_prints_one_table_where_there_is_no_terminal(servers: tuple[Server, Server]) -> None:
    for option in ((), ("--once",)):
        said = shardpipe("top", servers[0].url, DEAD, "--every", 0.05, *option, code=1).stdout
        head, first, second, why = said.splitlines()
        assert head.split()[:4] == ["server", "state", "datasets", "batches/s"]
        assert first.split()[:3] == [servers[0].url, "up", "speech"]
        assert second.split()[:2] == [DEAD, "down"]
        assert why == f"{DEAD}: Connection refused"
    assert "up" in shardpipe("top", servers[0].url, "--every", 0.05).stdout


def test_top_counts_refusals_and_rates(data: Path) -> None:
    with running(data, "--name", "speech") as server:
        loader = ShardLoader(f"shardpipe+{server.url}/speech", batch_size=2)
        ended = threading.Event()

        def load() -> None:
            while not ended.is_set():
                [*_] = loader

        thread = threading.Thread(target=load)
        thread.start()
        try:
            (row,) = top(server.url, "--every", 1)
        finally:
            ended.set()
            thread.join()
        assert row["batches_per_s"] > 0
        assert row["bytes_per_s"] > row["batches_per_s"]


def test_top_shows_a_token(data: Path, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("0123456789abcdef\n")
    wrong.write_text("fedcba9876543210\n")
    with running(data, "--name", "speech", "--token-file", right) as server:
        for options in ((), ("--token-file", wrong)):
            (row,) = top(server.url, *options, "--every", 0.05, code=1)
            assert (row["state"], row["why"]) == ("refused", "it refuses the token: give its own by --token-file")
        (row,) = top(server.url, "--token-file", right, "--every", 0.05)
        assert (row["state"], row["refusals"]) == ("up", {"401": 4})


def test_top_finds_a_server_that_is_frozen(data: Path) -> None:
    with running(data, "--name", "speech") as server:
        server.signal(signal.SIGSTOP)
        (row,) = top(server.url, "--every", 0.05, code=1)
        assert (row["state"], row["why"]) == ("down", "it is silent")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("http://10.0.0.1:7070",), "plain http is for servers on this machine alone"),
        (("ftp://a",), "it must be like https://host:7070/NAME"),
        (("https://{a",), "its braces must be balanced"),
        (("https://a", "--token-file", "nowhere"), "it cannot be read"),
        (("https://a", "--tls-ca", "nowhere"), "it must be a file of certificates"),
        (("https://a", "--every", "0"), "--every"),
    ],
)
def test_top_refuses_in_one_message(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in shardpipe("top", *arguments, code=2, folder=tmp_path).stderr
