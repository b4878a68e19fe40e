"""A run whose checkpoints lie at a URL: faults of the network lose nothing, and no other place is taken in silence."""

from __future__ import annotations

import fcntl
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import fsspec
import pytest
import yaml

from shardpipe.store import Retry
from shardpipe.store.remote import reading, writing
from shardpipe.train.checkpoints import Checkpoints, Keep
from shardpipe.train.cli import main
from tests.faulty_proxy import FaultyProxy, running_proxy
from tests.places import objects, use_bucket
from tests.speech import pack_speech
from tests.training import FLAGS, delivered, events, kill_at, one_thread, outcome

SAMPLES = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("places"), SAMPLES, shard_samples=8, seconds=(0.3, 0.6))


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("places-done") / "run"
    with one_thread():
        assert main(flags(data, out)) == 0
    return out


def flags(data: Path, out: Path, *more: str) -> list[str]:
    return [*FLAGS, "--data", str(data), "--out", str(out), "--epochs", "1", "--save-every", "2steps", *more]


@pytest.fixture
def proxy(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultyProxy, str]]:
    s3 = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()  # they hold the endpoint of their first use
    quick = partial(Retry, attempts=3, first_wait=0.02, attempt_seconds=5.0)  # s3fs tries five times in each
    monkeypatch.setattr(writing, "_RETRY", quick())
    monkeypatch.setattr(reading, "Retry", quick)
    with running_proxy(s3_endpoint, kinds=("503", "reset", "truncated")) as (proxy, endpoint):
        yield proxy, use_bucket(endpoint, monkeypatch)
    s3.clear_instance_cache()


def test_a_run_through_a_network_with_faults(
    data: Path, done: Path, tmp_path: Path, proxy: tuple[FaultyProxy, str]
) -> None:
    faults, url = proxy
    faults.share = 0.2
    at_url = flags(data, tmp_path / "run", "--checkpoints", url)
    code, _ = kill_at(tmp_path / "run", 16, at_url, when=lambda: bool(Checkpoints(url, keep=Keep()).counts()))
    assert code == -signal.SIGKILL
    assert main(at_url) == 0
    assert events(tmp_path / "run", "resume")[0]["consumed_samples"] > 0
    assert sum(faults.faults.values()) - faults.faults[""] > 5
    faults.share = 0.0
    assert outcome(tmp_path / "run") == outcome(done)
    assert not (tmp_path / "run" / "checkpoints").exists()
    theirs = {f.relative_to(done / "checkpoints").as_posix(): f.read_bytes() for f in done.glob("checkpoints/*/*")}
    assert objects(url) == theirs


@contextmanager
def away(out: Path, faults: FaultyProxy, monkeypatch: pytest.MonkeyPatch, *, back: bool) -> Iterator[None]:
    """A server that answers nobody any more once a run has a checkpoint there, until that is said, if it comes back."""
    monkeypatch.setattr(writing, "_RETRY", Retry(attempts=1, attempt_seconds=10.0))
    faults.kinds = ("reset",)

    ended = threading.Event()

    def watch() -> None:
        while not events(out, "checkpoint") and not ended.wait(0.005):
            pass
        faults.share = 1.0
        while back and not events(out, "checkpoint_failed") and not ended.wait(0.005):
            pass
        faults.share = 0.0 if back else 1.0

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def test_a_server_that_is_away_for_a_while(
    data: Path, tmp_path: Path, proxy: tuple[FaultyProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on, says so, and its next checkpoint takes the place of the one that was not written."""
    faults, url = proxy
    out = tmp_path / "run"
    with away(out, faults, monkeypatch, back=True):
        assert main(flags(data, out, "--checkpoints", url, "--epochs", "3")) == 0
    failed = events(out, "checkpoint_failed")
    assert url in failed[0]["reason"]
    assert Checkpoints(url, keep=Keep()).counts()[-1] == 3 * SAMPLES
    assert all(set(keys.values()) == {1} for keys in delivered(out).values())


def test_a_server_that_is_away_at_the_end_is_an_error_and_no_loss(
    data: Path,
    done: Path,
    tmp_path: Path,
    proxy: tuple[FaultyProxy, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults, url = proxy
    out = tmp_path / "run"
    at_url = flags(data, out, "--checkpoints", url)
    with away(out, faults, monkeypatch, back=False):
        assert main(at_url) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"shardpipe-train: {url}")
    assert main(at_url) == 1, "nor is it there at the start"
    faults.share = 0.0
    last = Checkpoints(url, keep=Keep()).counts()[-1]
    assert 0 < last < SAMPLES
    assert main(at_url) == 0
    assert events(out, "resume")[-1]["consumed_samples"] == last
    assert outcome(out) == outcome(done)


def test_checkpoints_in_another_place_than_before(
    data: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "run"))
    url = f"memory://{tmp_path.name}"
    lines = (out / "metrics.jsonl").read_bytes()
    assert main(flags(data, out, "--checkpoints", url, "--epochs", "2")) == 2
    said = capsys.readouterr().err
    assert f"the run has its own, 24 samples and before, in {out}/checkpoints" in said
    assert f"--resume {out}/checkpoints, once" in said
    assert (out / "metrics.jsonl").read_bytes() == lines
    there = flags(data, out, "--checkpoints", url, "--epochs", "2")
    assert main([*there, "--resume", f"{out}/checkpoints"]) == 0
    assert events(out, "resume")[-1]["consumed_samples"] == SAMPLES
    assert Checkpoints(url, keep=Keep()).counts()[-1] == 2 * SAMPLES
    assert main(flags(data, out, "--epochs", "2")) == 2
    assert f"the run has its own, 48 samples and before, in {url}" in capsys.readouterr().err
    assert main([*flags(data, out, "--epochs", "2"), "--checkpoints", url]) == 0
    assert "done: " in capsys.readouterr().err
    other = flags(data, tmp_path / "tuned", "--init-from", f"{url}/{2 * SAMPLES:012d}")
    assert main(other) == 0
    assert events(tmp_path / "tuned", "step")[0]["step"] == 1
    fsspec.filesystem("memory").store.clear()


def test_a_run_of_an_older_version_that_is_to_save_elsewhere(
    data: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.yaml says nothing of places; nor does one that cannot be read."""
    out = Path(shutil.copytree(done, tmp_path / "run"))
    settings = yaml.safe_load((out / "config.yaml").read_bytes())
    del settings["checkpoints"]
    for content in (yaml.safe_dump(settings), "[", "- 1", "checkpoints: 3"):
        (out / "config.yaml").write_text(content)
        assert main(flags(data, out, "--checkpoints", str(tmp_path / "elsewhere"))) == 2
        assert "the run has its own, 24 samples and before" in capsys.readouterr().err
    assert events(out, "step") == events(done, "step")


def test_checkpoints_that_are_lost_are_no_reason_to_begin_anew(
    data: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "run"))
    shutil.rmtree(out / "checkpoints")
    assert main(flags(data, out)) == 1
    assert f"there is no checkpoint, and the run in {out} has had one at sample 24" in capsys.readouterr().err
    assert outcome(out) == outcome(done)
    assert main(flags(data, out, "--init-from", str(done))) == 1
    assert main(flags(data, out, "--resume-samples", "0")) == 0
    assert outcome(out) == outcome(done)
    assert main(flags(data, tmp_path / "tuned", "--init-from", str(done))) == 0
    assert events(tmp_path / "tuned", "step")[0]["step"] == 1


def test_one_place_is_one_runs_at_a_time(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").mkdir()
    with (tmp_path / "kept" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(flags(data, tmp_path / "run", "--checkpoints", str(tmp_path / "kept"))) == 1
    assert f"{tmp_path}/kept: another process is training there" in capsys.readouterr().err


def test_a_place_is_the_same_however_it_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    assert main(flags(data, out, "--checkpoints", "kept")) == 0
    assert main(["checkpoints", str(out)]) == 0
    (tmp_path / "inner").mkdir()
    for place in (f"{tmp_path}/kept/", f"file://{tmp_path}/kept", "./kept"):
        assert main(flags(data, out, "--checkpoints", place)) == 0
        assert "going on at sample 24" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "inner")
    assert main(["checkpoints", str(out)]) == 0
    assert main(flags(data, out, "--checkpoints", "kept")) == 2
    assert f"the run has its own, 24 samples and before, in {tmp_path}/kept" in capsys.readouterr().err
    assert main(flags(data, tmp_path / "other", "--resume", str(out))) == 0
    assert "going on at sample 24" in capsys.readouterr().err
    assert Checkpoints(f"{tmp_path}/other/checkpoints", keep=Keep()).counts() == [24], "its own, from the start"
