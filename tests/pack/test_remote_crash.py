"""Packing to URLs that is killed and run again: the same bytes, and nothing uploaded is uploaded again."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import boto3
import pytest

from shardpipe.dataset import MANIFEST, Index, verify
from shardpipe.pack import PackOptions, index_tars, pack
from tests.dying import dies_before
from tests.places import objects, run, speech_with_a_bad_line, tree, uploaded, use_bucket
from tests.speech import write_list


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech_with_a_bad_line(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def local(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "set"
    run(speech, out)
    return out


@pytest.mark.parametrize("lost", [False, True], ids=["staging-kept", "staging-lost"])
def test_killed_at_every_step(tmp_path: Path, speech: Path, local: Path, lost: bool) -> None:
    whole = tree(local)
    steps, cut = 0, True
    while cut:
        # fsspec's own file system of this machine: a URL like any other, and forked processes share what lies there.
        url, staging = f"local://{tmp_path}/{steps}/set", tmp_path / f"{steps}/staging"
        cut = dies_before(steps, partial(run, speech, url, staging))
        assert cut or objects(url) == whole
        if MANIFEST in objects(url):
            assert verify(url).ok, "the manifest is the commit marker"
        kept = uploaded(staging)
        if lost and staging.exists():
            shutil.rmtree(staging)
        report = run(speech, url, staging)
        assert report.shards_kept >= (0 if lost else len(kept))
        assert objects(url) == whole, f"killed before step {steps}"
        assert not staging.exists() or not list(staging.iterdir())
        steps += 1 + steps // 16
    assert steps > 30


@pytest.mark.parametrize("of", ["a-pack", "an-index"])
def test_killed_at_every_step_while_replacing_a_dataset(tmp_path: Path, speech: Path, local: Path, of: str) -> None:
    old_list = write_list(tmp_path / "old", 9)
    pristine = tmp_path / "pristine"
    if of == "a-pack":
        old = run(old_list, pristine, shard_samples=1).fingerprint
    else:
        run(old_list, tmp_path / "tars", shard_samples=4)
        old = index_tars(f"local://{tmp_path}/tars/*.tar", pristine).fingerprint
    new = Index.load(str(local)).fingerprint
    whole = tree(local)
    seen: set[str] = set()
    steps, cut = 0, True
    while cut:
        url, staging = f"local://{tmp_path}/{steps}/set", tmp_path / f"{steps}/staging"
        shutil.copytree(pristine, tmp_path / f"{steps}/set")
        cut = dies_before(steps, partial(run, speech, url, staging, overwrite=True))
        if MANIFEST in objects(url):
            assert verify(url).ok, "a manifest always tells the truth, be it the old one or the new one"
            seen.add(Index.load(url).fingerprint)
        run(speech, url, staging, overwrite=True)
        assert objects(url) == whole, f"killed before step {steps}"
        steps += 1 + steps // 16
    assert seen == {old, new}


PROGRAM = """
import sys
from shardpipe.pack import PackOptions, index_tars, pack

if __name__ == "__main__":
    pack(
        *sys.argv[1:3],
        options=PackOptions(shard_samples=2, format="flac", relative=True),
        staging=sys.argv[3],
        progress=lambda done, *rest: print(done, flush=True),
    )
"""


def test_killed_at_random_moments(tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data_list = write_list(tmp_path / "speech", 40, seconds=(1, 2))
    pack(data_list, tmp_path / "whole", options=PackOptions(shard_samples=2, format="flac", relative=True))
    (tmp_path / "program.py").write_text(PROGRAM)
    url, staging = use_bucket(s3_endpoint, monkeypatch), tmp_path / "staging"
    uploads = counts_uploads(url)
    command = [sys.executable, str(tmp_path / "program.py"), str(data_list), url, str(staging)]
    chance = random.Random(0)
    kills = 0
    while MANIFEST not in objects(url):
        kept, before = uploaded(staging), uploads()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(2, 14)):
                process.stdout.readline()
            time.sleep(chance.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        after = uploads()
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    pack(data_list, url, options=PackOptions(shard_samples=2, format="flac", relative=True), staging=staging)
    assert objects(url) == tree(tmp_path / "whole")
    assert kills >= 3


def counts_uploads(url: str) -> Callable[[], Counter[str]]:
    """Has the bucket of a URL count, by name, how often a file was uploaded."""
    bucket = url.split("/")[2]
    client = boto3.client("s3")
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})

    def uploads() -> Counter[str]:
        versions = client.list_object_versions(Bucket=bucket).get("Versions", [])
        return Counter(version["Key"].rpartition("/")[2] for version in versions)

    return uploads
