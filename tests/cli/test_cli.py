"""The `shardpipe` command as a user types it: what it prints, where, and its exit codes."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shardpipe.cli import app
from shardpipe.cli.console import progress, time_text
from shardpipe.dataset import verifying
from shardpipe.errors import ConfigError
from shardpipe.pack import packing, tars
from shardpipe.runtime import in_order as in_order_of_runtime
from shardpipe.settings import byte_size, size_text
from tests.speech import write_list

SAMPLES = 20


def shardpipe(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from shardpipe.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def printed(*arguments: object, code: int = 0) -> Any:
    return json.loads(shardpipe(*arguments, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    shardpipe("pack", write_list(folder, SAMPLES), "-o", folder / "packed", "--shard-samples", 6, "--jobs", 2)
    return folder / "packed"


def test_pack_tells_what_it_made(tmp_path: Path) -> None:
    source = write_list(tmp_path, SAMPLES)
    first = printed("pack", source, "-o", tmp_path / "packed", "--shard-size", "64KiB", "--format", "flac")
    assert (first["samples"], first["rejected"], first["shards_kept"]) == (SAMPLES, 0, 0)
    assert first["shards"] == len(list((tmp_path / "packed").glob("*.tar"))) > 1
    again = printed("pack", source, "-o", tmp_path / "packed", "--shard-size", "64KiB", "--format", "flac")
    assert again["shards_kept"] == first["shards"]
    assert (
        "from an earlier run"
        in shardpipe("pack", source, "-o", tmp_path / "packed", "--shard-size", "64KiB", "--format", "flac").stdout
    )


def test_pack_lists_what_it_skipped(tmp_path: Path) -> None:
    source = write_list(tmp_path, 3)
    (tmp_path / "audio" / "utt00001.flac").write_bytes(b"")
    failed = shardpipe("pack", source, "-o", tmp_path / "packed", code=1)
    assert "utt00001" in failed.stderr
    assert not (tmp_path / "packed").exists()
    made = shardpipe("pack", source, "-o", tmp_path / "packed", "--on-error", "skip")
    assert "1, listed in" in made.stdout
    (line,) = (tmp_path / "packed" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "utt00001"


def test_info_and_verify(data: Path) -> None:
    info = printed("info", data)
    assert (info["samples"], info["shards"], info["sample_rates"]) == (SAMPLES, 4, {"16000": SAMPLES})
    assert info["fingerprint"] in shardpipe("info", data).stdout
    assert "is whole: 20 samples in 4 shards" in shardpipe("verify", data).stdout
    assert printed("verify", data)["ok"] is True


def test_verify_finds_a_flipped_byte(data: Path, tmp_path: Path) -> None:
    indexed = tmp_path / "copy"
    indexed.mkdir()
    tar = bytearray((data / "shard-000001.tar").read_bytes())
    (indexed / "a.tar").write_bytes(tar)
    shardpipe("index", indexed / "*.tar", "-o", indexed)
    tar[len(tar) // 2] ^= 1
    (indexed / "a.tar").write_bytes(tar)
    assert "a.tar" in shardpipe("verify", indexed, code=1).stderr
    found = printed("verify", indexed, code=1)
    assert found["ok"] is False
    assert found["problems"]


@pytest.mark.parametrize("command", ["pack", "index", "verify"])
def test_jobs_are_by_default_the_cores_that_it_may_use(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    asked: list[int] = []

    def in_order(function: Any, chunks: Any, *, jobs: int) -> Any:
        asked.append(jobs)
        return in_order_of_runtime(function, chunks, jobs=1)

    for module in (packing, tars, verifying):
        monkeypatch.setattr(module, "in_order", in_order)
    given = {
        "pack": [str(data.parent / "data.list"), "-o", str(tmp_path / "out")],
        "index": [str(data / "*.tar"), "-o", str(tmp_path / "out")],
        "verify": [str(data)],
    }[command]
    app([command, *given], standalone_mode=False)
    app([command, *given, "--jobs", "3", *([] if command == "verify" else ["--overwrite"])], standalone_mode=False)
    assert asked == [len(os.sched_getaffinity(0)), 3]


def test_index_leaves_the_tars_alone(data: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in data.glob("*.tar")}
    made = printed("index", data / "shard-{000000..000003}.tar", "-o", tmp_path / "index")
    assert made["samples"] == SAMPLES
    assert made["fingerprint"] == printed("info", data)["fingerprint"]
    assert before == {path.name: path.read_bytes() for path in data.glob("*.tar")}
    assert not list((tmp_path / "index").glob("*.tar"))
    assert printed("verify", tmp_path / "index")["ok"] is True


def test_at_where_and_plan_agree(data: Path) -> None:
    flags = ("--batch-size", 3, "--seed", 4, "--world-size", 2)
    given = printed("at", data, "--consumed", SAMPLES + 10, *flags)
    assert (given["epoch"], given["super_window"], given["batch"], given["rank"]) == (1, 0, 3, None)
    key = given["keys"][0]
    visit = printed("where", data, key, *flags)[1]
    assert (visit["epoch"], visit["turn"]) == (1, given)
    at, where = (
        shardpipe(*call, *flags).stdout for call in (("at", data, "--consumed", SAMPLES + 10), ("where", data, key))
    )
    assert key in at
    for said in (at, where):
        assert "number 3 of super-window 0, lane 0, rank only by --steps" in " ".join(said.split())
    stepped = printed("at", data, "--consumed", SAMPLES + 10, "--steps", *flags)
    assert stepped == given | {"rank": 1, "step": stepped["step"]}
    assert stepped["step"]["keys"][1] == given["keys"]
    assert printed("where", data, key, "--steps", *flags)[1]["turn"] == stepped
    at, where = (
        shardpipe(*call, "--steps", *flags).stdout
        for call in (("at", data, "--consumed", SAMPLES + 10), ("where", data, key))
    )
    for said in (at, where):
        assert f"step {stepped['step']['number']}, counts" in " ".join(said.split())
        assert "rank 1 of 2" in " ".join(said.split())
    cost = printed("plan", data, *flags)
    assert (cost["steps"], cost["samples"]) == (4, SAMPLES)
    assert "4 of 2 ranks" in shardpipe("plan", data, *flags).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("pack", "nowhere.list", "-o", "out"), 1, "nowhere.list"),
        (("info", "nowhere"), 1, "shardindex.json"),
        (("verify", "nowhere"), 1, "shardindex.json"),
        (("doctor", "nowhere"), 1, "nowhere/shardindex.json: there is no such file"),
        (("doctor", "."), 1, "shardindex.json: there is no such file"),
        (("doctor", "--seconds", "0"), 2, "seconds is 0.0, but it must be above 0"),
        (("index", "nowhere/*.tar", "-o", "out"), 1, "no file matches"),
        (("plan", "DATA"), 2, "batch_size"),
        (("plan", "DATA", "--batch-seconds", "0.01"), 2, "alone lasts"),
        (("where", "DATA", "nobody", "--batch-size", "3"), 2, "nobody"),
        (("at", "DATA", "--consumed", "-1", "--batch-size", "3"), 2, "--consumed"),
        (("pack", "nowhere.list"), 2, "--out"),
        (("pack", "x", "-o", "y", "--shard-size", "many"), 2, "512MiB"),
        (("pack", "x", "-o", "y", "--shard-samples", "0"), 2, "shard_samples"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_errors_are_one_message(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = shardpipe(*(str(data) if a == "DATA" else a for a in arguments), code=code)
    assert words in failed.stderr
    assert not failed.stdout
    assert not list(tmp_path.iterdir())


def test_help_and_version() -> None:
    import shardpipe as package

    assert shardpipe("--version").stdout.strip() == package.__version__
    for command in ("pack", "index", "verify", "info", "at", "where", "plan", "doctor", "serve", "top", "demo"):
        assert command in shardpipe("--help").stdout


def test_sizes_and_times_read_well() -> None:
    assert [byte_size("shard_size", text) for text in ("512MiB", "2GB", "4096", "1.5 KiB")] == [
        2**29,
        2 * 10**9,
        4096,
        1536,
    ]
    for text in ("", "MiB", "-1", "0", "0.5", "1 XB", "1e3"):
        with pytest.raises(ConfigError, match="512MiB"):
            byte_size("shard_size", text)
    assert [size_text(n) for n in (0, 1023, 1536, 2**30, 2**41)] == ["0 B", "1023 B", "1.5 KiB", "1.0 GiB", "2.0 TiB"]
    assert [time_text(s) for s in (4.2, 200, 7500)] == ["4.2 s", "3 min 20 s", "2 h 05 min"]


def test_progress_prints_plain_lines_off_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 1.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    with progress("packing") as report:
        for done in (1, 2, 3, 4):
            report(done, 4, done << 20)
    assert capsys.readouterr().err.splitlines() == [
        "packing: 2 of 4, 0/s, 186.2 KiB/s, ETA 11.0 s",
        "packing: 4 of 4, 0/s, 204.8 KiB/s, ETA 0.0 s",
    ]


@pytest.mark.parametrize("arguments", [("info",), ("info", "--json")])
def test_output_that_cannot_be_written_is_an_error(data: Path, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", "from shardpipe.cli import main; main()", *arguments, str(data)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("shardpipe: standard output: cannot be written (No space left on device)")
    assert "Traceback" not in done.stderr


def test_counts_beyond_any_machine_are_refused(data: Path) -> None:
    assert "--jobs" in shardpipe("verify", data, "--jobs", 10**11, code=2).stderr
    assert "--world-size" in shardpipe("plan", data, "--batch-size", 4, "--world-size", 10**10, code=2).stderr


def test_keys_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    source = write_list(tmp_path, 1)
    source.write_text(source.read_text().replace('utt00000", "', 'д", "', 1))
    command = [sys.executable, "-c", "from shardpipe.cli import main; main()"]
    shardpipe("pack", source, "-o", tmp_path / "packed")
    for option in ((), ("--json",)):
        at = [*command, "at", str(tmp_path / "packed"), "--consumed", "0", "--batch-size", "1", *option]
        done = subprocess.run(at, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert b"\\u0434" in done.stdout


@pytest.fixture
def website(data: Path) -> Iterator[str]:
    """The host and port of a server for the dataset."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(data))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_no_command_prints_the_credentials_of_a_url(tmp_path: Path, website: str) -> None:
    url = f"http://me:hunter22@{website}?token=t0ken"
    done = [
        shardpipe("info", url),
        shardpipe("verify", url, code=1),  # for the server knows no ranges
        shardpipe("plan", url, "--batch-size", 4, code=1),
        shardpipe("doctor", url, "--seconds", 0.05),
        shardpipe("at", url, "--batch-size", 4, "--consumed", 3, code=1),
        shardpipe("info", f"http://me:hunter22@{website}/elsewhere?token=t0ken", code=1),
        shardpipe("index", url, "-o", tmp_path / "index", code=2),
        shardpipe("pack", write_list(tmp_path, 1), "-o", url, code=2),
    ]
    for command in done:
        assert website in command.stdout + command.stderr
        assert "hunter22" not in command.stdout + command.stderr
        assert "t0ken" not in command.stdout + command.stderr
