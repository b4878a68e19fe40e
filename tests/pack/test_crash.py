"""Packing that is killed, or runs out of disk, and is run again: the same bytes, and nothing finished is done twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardpipe.dataset import MANIFEST, Index, verify
from shardpipe.errors import AudioError, StoreError
from tests.dying import dies_before
from tests.places import pack_list, tree
from tests.speech import write_list


def runs_until(step: int, data_list: Path, out: Path, **options: Any) -> bool:
    """Whether packing was cut short before that step."""
    return dies_before(step, partial(pack_list, data_list, out, **options))


def finished_shards(out: Path) -> dict[str, int]:
    """Inodes of the shards that a further run must keep."""
    markers = (out / ".packing").glob("shard-*.parquet")
    tars = [marker.with_suffix(".tar") for marker in markers]
    return {tar.name: tar.stat().st_ino for tar in tars if tar.exists()}


@pytest.fixture(scope="module")
def small_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_list = write_list(tmp_path_factory.mktemp("small"), 3, codecs=("wav", "flac"))
    data_list.write_text(data_list.read_text() + '{"key": "bad", "wav": "missing.wav", "txt": ""}\n')
    return data_list


def test_killed_at_every_step(tmp_path: Path, small_list: Path) -> None:
    options = {"shard_samples": 2, "on_error": "skip"}
    pack_list(small_list, tmp_path / "whole", **options)
    whole = tree(tmp_path / "whole")
    steps = 0
    while runs_until(steps, small_list, out := tmp_path / f"out{steps}", **options):
        if (out / MANIFEST).exists():
            assert verify(out).ok, "the manifest is the commit marker"
        finished = finished_shards(out)
        report = pack_list(small_list, out, **options)
        assert report.shards_kept >= len(finished)
        assert {name: (out / name).stat().st_ino for name in finished} == finished
        assert tree(out) == whole, f"killed before step {steps}"
        steps += 1
    assert steps > 30


def test_killed_at_every_step_while_replacing_a_dataset(tmp_path: Path, small_list: Path) -> None:
    old_list = write_list(tmp_path / "old", 3)
    options = {"shard_samples": 2, "on_error": "skip", "overwrite": True}
    pack_list(small_list, tmp_path / "whole", **options)
    whole = tree(tmp_path / "whole")
    new = Index.load(str(tmp_path / "whole")).fingerprint
    old = pack_list(old_list, tmp_path / "pristine", shard_samples=1).fingerprint
    seen, steps, is_cut = set(), 0, True
    while is_cut:
        out = tmp_path / f"out{steps}"
        pack_list(old_list, out, shard_samples=1)
        is_cut = runs_until(steps, small_list, out, **options)
        if (out / MANIFEST).exists():
            assert verify(out).ok, "a manifest always tells the truth, be it the old one or the new one"
            seen.add(Index.load(str(out)).fingerprint)
        is_published = (out / MANIFEST).exists() and Index.load(str(out)).fingerprint == new
        is_tidied = not (out / ".packing").exists() or not any((out / ".packing").glob("[jp]*"))
        report = pack_list(small_list, out, **options)
        if is_published and not is_tidied:
            assert report.shards_kept == report.shards, "all that was left to do is to tidy up"
        assert tree(out) == whole, f"killed before step {steps}"
        steps += 1
    assert seen == {old, new}


PROGRAM = """
import sys
from shardpipe.pack import PackOptions, pack

if __name__ == "__main__":
    options = PackOptions(shard_samples=4, jobs=int(sys.argv[3]), format="flac", relative=True)
    pack(sys.argv[1], sys.argv[2], options=options, progress=lambda done, *rest: print(done, flush=True))
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_random_moments(tmp_path: Path, jobs: int) -> None:
    data_list = write_list(tmp_path / "speech", 48, seconds=(1, 3))
    pack_list(data_list, tmp_path / "whole", shard_samples=4, format="flac")
    (tmp_path / "program.py").write_text(PROGRAM)
    out = tmp_path / "out"
    chance = random.Random(jobs)
    kills = 0
    while not (out / MANIFEST).exists():
        finished = finished_shards(out)
        with start(tmp_path / "program.py", data_list, out, jobs) as (process, family):
            for _ in range(chance.randrange(1, 20)):
                process.stdout.readline()
            time.sleep(chance.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                kills += 1
            _, alive = psutil.wait_procs(family(), timeout=10)
            assert not alive, "workers must not outlive a killed parent"
        kept = finished_shards(out)
        assert {name: kept.get(name) for name in finished} == finished or (out / MANIFEST).exists()
    pack_list(data_list, out, shard_samples=4, format="flac")
    assert tree(out) == tree(tmp_path / "whole")
    assert kills >= 3


class start:  # noqa: N801 (reads as a function)
    """A packing process, and what tells its descendants."""

    def __init__(self, program: Path, data_list: Path, out: Path, jobs: int) -> None:
        command = [sys.executable, str(program), str(data_list), str(out), str(jobs)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> tuple[Any, Callable[[], list[psutil.Process]]]:
        self.process.stdout.readline()
        children = psutil.Process(self.process.pid).children(recursive=True)
        return self.process, lambda: children

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def test_an_error_keeps_what_is_finished_for_the_next_try(tmp_path: Path) -> None:
    data_list = write_list(tmp_path / "speech", 10)
    broken = tmp_path / "speech/audio/utt00007.flac"
    data = broken.read_bytes()
    pack_list(data_list, tmp_path / "whole", shard_samples=3)
    broken.write_bytes(b"")
    with pytest.raises(AudioError, match="is empty"):
        pack_list(data_list, tmp_path / "out", shard_samples=3)
    finished = finished_shards(tmp_path / "out")
    assert sorted(finished) == ["shard-000000.tar", "shard-000001.tar"]
    assert not list((tmp_path / "out").rglob("*.new"))
    other = write_list(tmp_path / "other", 3)
    with pytest.raises(StoreError, match="unfinished pack of another list.*--overwrite"):
        pack_list(other, tmp_path / "out")
    assert finished_shards(tmp_path / "out") == finished
    broken.write_bytes(data)
    assert pack_list(data_list, tmp_path / "out", shard_samples=3).shards_kept == 2
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("left", [None, 0, 600])
@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.parquet"])
def test_a_finished_shard_that_came_to_harm_is_made_again(tmp_path: Path, name: str, left: int | None) -> None:
    data_list = write_list(tmp_path / "speech", 10)
    broken = tmp_path / "speech/audio/utt00009.flac"
    data = broken.read_bytes()
    pack_list(data_list, tmp_path / "whole", shard_samples=3)
    broken.write_bytes(b"")
    with pytest.raises(AudioError, match="is empty"):
        pack_list(data_list, tmp_path / "out", shard_samples=3)
    broken.write_bytes(data)
    harmed = tmp_path / "out/.packing" / name
    if left is None:
        harmed.unlink()
    else:
        os.truncate(harmed, left)
    assert pack_list(data_list, tmp_path / "out", shard_samples=3).shards_kept == 1
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_an_unfinished_pack_can_be_dropped(tmp_path: Path) -> None:
    data_list = write_list(tmp_path / "speech", 10)
    runs_until(25, data_list, tmp_path / "out", shard_samples=2)
    assert finished_shards(tmp_path / "out")
    other = write_list(tmp_path / "other", 3)
    assert pack_list(other, tmp_path / "out", overwrite=True).shards_kept == 0
    pack_list(other, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_choosing_to_fail_after_all_does_not_keep_what_was_skipped(tmp_path: Path, small_list: Path) -> None:
    lines = small_list.read_text().splitlines()
    first_bad = small_list.with_name("first_bad.list")
    first_bad.write_text("\n".join(lines[-1:] + lines[:-1]))
    assert runs_until(18, first_bad, tmp_path / "out", shard_samples=1, on_error="skip")
    assert finished_shards(tmp_path / "out")
    with pytest.raises(AudioError, match="missing"):
        pack_list(first_bad, tmp_path / "out", shard_samples=1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk(tmp_path: Path, small_disk: Path, jobs: int) -> None:
    data_list = write_list(tmp_path / "speech", 60, codecs=("wav",), seconds=(0.4, 0.6))
    pack_list(data_list, tmp_path / "whole", shard_samples=8)
    assert sum(map(len, tree(tmp_path / "whole").values())) > 900_000
    out = small_disk / "out"
    with pytest.raises(StoreError, match=r"the disk is full.*run the same command again") as caught:
        pack_list(data_list, out, shard_samples=8, jobs=jobs)
    assert str(out) in caught.value.url
    finished = finished_shards(out)
    assert len(finished) >= 2
    assert not [name for name in tree(out) if name.endswith(".new")], "partial files give their room back"
    with pytest.raises(StoreError, match="the disk is full"):
        pack_list(data_list, out, shard_samples=8, jobs=jobs)
    again = finished_shards(out)
    assert again.items() >= finished.items(), "the last one may or may not find room beside the next one"
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert pack_list(data_list, out, shard_samples=8, jobs=jobs).shards_kept == len(again)
    assert tree(out) == tree(tmp_path / "whole")


def test_a_disk_too_full_for_anything(tmp_path: Path, small_disk: Path) -> None:
    data_list = write_list(tmp_path / "speech", 4)
    filler = small_disk / "filler"
    filled = subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4096"], capture_output=True)
    assert filled.returncode
    with pytest.raises(StoreError, match="the disk is full"):
        pack_list(data_list, small_disk / "out")
    filler.unlink()
    assert pack_list(data_list, small_disk / "out").samples == 4
