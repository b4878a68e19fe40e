"""Processes that make batches: the same batches, whatever becomes of this process or of theirs."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shardpipe import Batch, Sample, ShardLoader
from shardpipe.errors import ShardError, ShardpipeError
from tests.forking import ended, forked, needs_fork
from tests.speech import pack_speech

SAMPLES = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("workers"), SAMPLES, shard_samples=7, seconds=(0.05, 0.3))


def same(some: list[Batch], others: list[Batch]) -> bool:
    return len(some) == len(others) > 0 and all(
        (one.keys, one.texts, one.extras, one.sample_rate, one.consumed_samples)
        == (other.keys, other.texts, other.extras, other.sample_rate, other.consumed_samples)
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("audio", "lengths", "weights"))
        for one, other in zip(some, others)
    )


def children() -> set[int]:
    return {process.ident for process in multiprocessing.active_children() if process.ident is not None}


def settled(reached: Callable[[], bool]) -> bool:
    """Whether a state is reached within a minute."""
    end = time.monotonic() + 60
    while not reached() and time.monotonic() < end:
        time.sleep(0.02)
    return reached()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def louder(sample: Sample, rng: np.random.Generator) -> Sample:
    sample.audio = sample.audio * np.float32(rng.uniform(0.1, 0.9))
    return sample


def longer(sample: Sample, rng: np.random.Generator) -> Sample:
    sample.audio = np.tile(sample.audio, int(rng.integers(1, 4)))
    return sample


def shorter(sample: Sample, rng: np.random.Generator) -> Sample:
    sample.audio = sample.audio[: len(sample.audio) // 2]
    return sample


def stack(samples: list[Sample]) -> torch.Tensor:
    return torch.tensor([float(sample.audio.sum()) for sample in samples])


@pytest.mark.parametrize(
    ("transform", "dtype"),
    [
        (None, "float32"),
        (None, "int16"),
        (louder, "float32"),
        (longer, "float32"),
        (longer, "int16"),
        (shorter, "int16"),
    ],
)
def test_the_same_batches_as_threads(data: Path, transform: Callable[..., Sample] | None, dtype: Any) -> None:
    options: dict[str, Any] = {"batch_size": 4, "transform": transform, "seed": 3, "dtype": dtype}
    assert same(list(ShardLoader(data, workers=2, **options)), list(ShardLoader(data, threads=2, **options)))


@pytest.mark.parametrize(("transform", "in_it"), [(None, True), (shorter, True), (longer, False)])
def test_audio_comes_in_shared_memory_where_it_fits(
    data: Path, transform: Callable[..., Sample] | None, in_it: bool
) -> None:
    loader = ShardLoader(data, batch_size=4, workers=1, transform=transform)
    batches = list(loader)
    assert loader._feed.pace.workers is not None
    assert loader._feed.pace.workers._pool is not None
    arena = loader._feed.pace.workers._pool._arena
    assert all(arena.start(batch.audio.numpy()) is not None for batch in batches) == in_it


def test_batches_that_do_not_fit_into_the_shared_memory(data: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "prefetch_bytes": 1}
    assert same(list(ShardLoader(data, workers=2, **options)), list(ShardLoader(data, **options)))


def test_a_batch_is_its_holders_as_long_as_it_is_held(data: Path) -> None:
    loader = ShardLoader(data, batch_size=4, workers=2, prefetch_bytes=1 << 20)
    kept = [(batch, batch.audio.clone()) for _ in range(3) for batch in loader]
    for batch, _ in kept[::2]:
        batch.audio.add_(1)  # it can be written to, and is nobody else's
    assert all(torch.equal(batch.audio, copy + (i % 2 == 0)) for i, (batch, copy) in enumerate(kept))


def test_what_collate_makes_of_them(data: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "collate": stack}
    made = list(ShardLoader(data, workers=2, **options))
    assert torch.equal(torch.cat(made), torch.cat(list(ShardLoader(data, **options))))


def test_processes_are_kept_from_loop_to_loop_and_end_with_the_loader(data: Path) -> None:
    before = children()
    loader = ShardLoader(data, batch_size=4, workers=2)
    assert children() == before, "none before they are needed"
    list(loader)
    begun = children() - before
    for batch in loader:
        if batch.consumed_samples > SAMPLES + 8:
            break
    list(loader)
    assert len(begun) == 2
    assert children() - before == begun
    del loader, batch
    gc.collect()
    assert settled(lambda: not children() & begun)


def test_a_batch_outlives_its_loader(data: Path) -> None:
    kept = list(ShardLoader(data, batch_size=4, workers=1))
    gc.collect()
    assert same(kept, list(ShardLoader(data, batch_size=4)))


KILLED = """
import multiprocessing, os, signal, sys, time
from shardpipe import ShardLoader

def hang(sample, rng):
    if sample.key != "utt00000":
        time.sleep(1000)
    return sample

if __name__ == "__main__":
    hanging = {"transform": hang, "shuffle": False, "batch_size": 1, "prefetch": 30} if "hanging" in sys.argv else {}
    loop = iter(ShardLoader(sys.argv[1], **{"batch_size": 4, "workers": 2, **hanging}))
    for batch in loop:
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        if "breaks" in sys.argv:
            loop.close()
        if "breaks" in sys.argv or "ends" in sys.argv:
            break
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look processes up in")
@pytest.mark.parametrize("transform", ["none", "hanging"])
def test_none_is_left_when_their_parent_is_killed(data: Path, tmp_path: Path, transform: str) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    with (tmp_path / "pids").open("w") as file:  # not a pipe, which those who are left would keep open
        done = subprocess.run([sys.executable, str(script), str(data), transform], stdout=file)
    pids = {int(pid) for pid in (tmp_path / "pids").read_text().split()}
    assert done.returncode < 0
    assert len(pids) == 2
    assert settled(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize("leaves", ["breaks", "ends"])
def test_a_transform_that_hangs_holds_up_nobody_who_has_left_the_loop(data: Path, tmp_path: Path, leaves: str) -> None:
    script = tmp_path / "left.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(data), "hanging", leaves]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@needs_fork
def test_a_forked_process_waits_for_no_start_of_its_parents(data: Path) -> None:
    loader = ShardLoader(data, batch_size=4, workers=1)
    assert loader._feed.pace.workers is not None
    with loader._feed.pace.workers._lock:  # as another thread might, which is starting them
        child = forked(lambda: len(list(loader)))
    assert ended(child) == 0


class OddError(Exception):
    """It cannot be made from what it holds."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


def odd(sample: Sample, rng: np.random.Generator) -> Sample:
    raise OddError("this", "that")


def no_file(sample: Sample, rng: np.random.Generator) -> Sample:
    raise FileNotFoundError(2, "no such noise", "noise.wav")


def test_an_error_says_where_it_arose(data: Path) -> None:
    loader = ShardLoader(data, batch_size=4, workers=1, shuffle=False, transform=no_file)
    for _ in range(2):  # the process lives on
        with pytest.raises(FileNotFoundError, match=r"no such noise.*noise\.wav") as error:
            list(loader)
        assert "'utt00000' in epoch 0" in error.value.__notes__[0]
        assert "in no_file" in str(error.value.__cause__)


def test_an_error_that_does_not_pickle_is_told_as_another(data: Path) -> None:
    with pytest.raises(RuntimeError, match="OddError: this and that") as error:
        list(ShardLoader(data, batch_size=4, workers=1, shuffle=False, transform=odd))
    assert "'utt00000' in epoch 0" in str(error.value.__cause__)


def no_pickle(samples: list[Sample]) -> Callable[[], None]:
    return lambda: None


def test_a_batch_that_does_not_pickle(data: Path) -> None:
    with pytest.raises(Exception, match="pickle.*no_pickle"):
        list(ShardLoader(data, batch_size=4, workers=1, collate=no_pickle))


def crashes_once(sample: Sample, rng: np.random.Generator) -> Sample:
    flag = Path(os.environ["SHARDPIPE_TEST_FLAG"])
    if not flag.exists():
        flag.touch()
        os._exit(3)
    return sample


def test_others_take_the_place_of_those_that_died(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDPIPE_TEST_FLAG", str(tmp_path / "flag"))
    loader = ShardLoader(data, batch_size=4, workers=2, transform=crashes_once)
    with pytest.raises(ShardpipeError, match=r"a worker process died\. Memory may"):
        list(loader)
    loader.load_state_dict(ShardLoader(data, batch_size=4).state_dict())
    assert same(list(loader), list(ShardLoader(data, batch_size=4)))


def crashes_beside_its_child(sample: Sample, rng: np.random.Generator) -> Sample:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(90)"], close_fds=False)
    Path(os.environ["SHARDPIPE_TEST_FLAG"]).write_text(str(child.pid))
    os._exit(3)


def test_what_a_worker_has_started_does_not_hide_its_death(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDPIPE_TEST_FLAG", str(tmp_path / "pid"))
    with pytest.raises(ShardpipeError, match="a worker process died"):
        list(ShardLoader(data, batch_size=4, workers=1, transform=crashes_beside_its_child))
    child = int((tmp_path / "pid").read_text())
    assert alive(child), "nobody has waited for its end"
    os.kill(child, signal.SIGKILL)


def test_a_damaged_shard_is_an_error_of_its_own_kind(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in data.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(data)).parent.mkdir(exist_ok=True)
            (copy / path.relative_to(data)).write_bytes(path.read_bytes())
    shard = next(iter(sorted(copy.glob("*.tar"))))
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(ShardError, match="CRC-32.*shardpipe verify"):
        list(ShardLoader(copy, batch_size=4, workers=1))


def test_a_loader_travels_without_its_processes(data: Path) -> None:
    loader = ShardLoader(data, batch_size=4, workers=1)
    first = list(loader)
    other = pickle.loads(pickle.dumps(loader))
    loader.load_state_dict(ShardLoader(data, batch_size=4).state_dict())
    assert same(list(other), list(ShardLoader(data, batch_size=4, resume_samples=SAMPLES)))
    assert same(list(loader), first)


def test_ctrl_c_is_not_for_workers_that_are_still_starting(data: Path) -> None:
    batches = list(ShardLoader(data, batch_size=4))
    done, sent = threading.Event(), set[int]()

    def interrupt() -> None:
        while not done.wait(0.02):
            for pid in children():
                os.kill(pid, signal.SIGINT)
                sent.add(pid)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    try:
        assert same(list(ShardLoader(data, batch_size=4, workers=2)), batches)
    finally:
        done.set()
        interrupting.join()
    assert len(sent) >= 2
