"""However a start of a run ends, it says so in time, and what it and the next ones were given is proved by an audit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardpipe import ShardLoader
from shardpipe.train.audit import audit
from shardpipe.train.cli import main
from shardpipe.train.ending import AGAIN
from shardpipe.train.ending.exits import INTERRUPTED
from tests import places
from tests.speech import pack_speech
from tests.training import FLAGS, count, events, finish, kill_at, markers, one_thread, outcome, start, steps

SAMPLES = 48
HANG_MINUTES = 0.1
"""6 s: a step here takes less than a tenth of a second, and several processes on a busy machine may take one."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("train"), SAMPLES, shard_samples=8, seconds=(0.3, 0.6))


@pytest.fixture(scope="module")
def flags(data: Path) -> list[str]:
    """Of a run of 16 steps an epoch, on any number of processes."""
    size = ["--batch-size", "1", "--batches-per-step", "3", "--save-every", "2steps", "--sub-epochs", "2"]
    return [*FLAGS, "--data", str(data), "--epochs", "2", *size]


@pytest.fixture(scope="module")
def whole(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run as nothing ended it, on one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with one_thread():
        assert main([*flags, "--out", str(out)]) == 0
    return out


def said_at_the_end(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "exit.json").read_text())
    return found


def assert_proved(out: Path, epochs: int = 2) -> None:
    found = audit(str(out))
    assert found.ok, found.faults
    assert found.saved_at == epochs * SAMPLES
    assert [epoch.came for epoch in found.epochs] == [SAMPLES] * epochs
    assert not found.stretches


def wait_for(out: Path, samples: int, process: subprocess.Popen[str]) -> None:
    while not (count(out) >= samples and markers(out)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_asked_by_any_signal_it_ends_to_be_started_again(flags: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, said = kill_at(out, 12, flags, number=signal.SIGUSR1)
    assert code == AGAIN == said_at_the_end(out)["code"], said
    assert "SIGUSR1: stopping after this step" in said
    assert f"exit code 75: to be started again; {out}/exit.json says so, too" in said
    assert said_at_the_end(out)["outcome"] == "stopped"
    assert audit(str(out)).ok
    # Stuck where Python's own handlers have no turn, it still hears the second Ctrl-C.
    process = start(out, flags, hang=f"0:{count(out) + 9}:sleeping:{tmp_path / 'stuck'}")
    while not (tmp_path / "stuck").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == INTERRUPTED, said
    assert "SIGINT: stopping after this step" in said
    assert "SIGINT again: ended at once" in said
    assert not (out / "exit.json").exists(), "nothing was left to say"
    assert "goodput" in finish(out, flags)
    last = said_at_the_end(out)
    assert (last["outcome"], last["code"], last["reason"]) == ("done", 0, "all 2 epochs are done")
    assert outcome(out) == outcome(whole)
    assert_proved(out)


def test_one_of_three_hangs_then_one_is_lost_then_there_are_two(flags: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [*flags, "--hang-minutes", str(HANG_MINUTES)]
    began = time.monotonic()
    process = start(out, flags, processes=3, hang=f"1:24:sleeping:{tmp_path / 'stuck'}")
    while not (tmp_path / "stuck").exists():
        assert process.poll() is None
        time.sleep(0.01)
        began = time.monotonic()
    _, said = process.communicate(timeout=60)
    # The rule: so many minutes, and a tenth, or 5 s, for all to say where they are; the launcher takes another 5 s.
    assert time.monotonic() - began < 60 * HANG_MINUTES + 5 + 5 + 5, said
    assert process.returncode == AGAIN, said
    assert said_at_the_end(out)["outcome"] == "hang"
    (folder,) = (out / "stacks").iterdir()
    stacks = {file.name: file.read_text() for file in folder.iterdir()}
    assert sorted(stacks) == ["rank0.txt", "rank1.txt", "rank2.txt"]
    assert "in stuck" in stacks["rank1.txt"]
    assert "in stuck" not in stacks["rank0.txt"] + stacks["rank2.txt"]
    for text in stacks.values():
        assert "last keys: utt" in text

    process = start(out, flags, processes=3)
    wait_for(out, 60, process)
    psutil.Process(process.pid).children()[2].kill()
    _, said = process.communicate(timeout=60)
    assert "is gone" in said
    assert "Traceback" not in said
    assert said_at_the_end(out)["outcome"] == "lost"
    assert said_at_the_end(out)["code"] == AGAIN

    finish(out, flags, processes=2)
    assert_proved(out)
    assert steps(out) == steps(whole)


def test_one_that_holds_the_interpreter_is_ended_from_outside(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    stuck = f"0:12:holding:{tmp_path / 'stuck'}"
    process = start(out, [*flags, "--hang-minutes", "0.06"], hang=stuck)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    (text,) = [file.read_text() for file in (out / "stacks").glob("*/rank0.txt")]
    assert "Timeout" in text
    assert "hanging.py" in text
    finish(out, flags)
    assert_proved(out)


def test_the_others_end_with_the_error_of_one(tmp_path: Path) -> None:
    data = pack_speech(tmp_path / "src", 12, codecs=("wav",), seconds=(0.3, 0.5), shard_samples=6)
    shard = data / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 0xFF
    shard.write_bytes(content)
    out = tmp_path / "run"
    process = start(out, [*FLAGS, "--data", str(data), "--epochs", "1", "--batch-size", "1"], processes=2)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert said.count("utt00006") == 2, "each says what has ended it"
    assert "of the run has ended it" in said
    assert said_at_the_end(out)["outcome"] == "failed"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """24 MB: room for a run's first checkpoints."""
    with places.small_disk(tmp_path / "disk", "24m") as disk:
        yield disk


def test_a_full_disk_ends_it_and_with_room_it_goes_on(flags: list[str], whole: Path, small_disk: Path) -> None:
    out, filler = small_disk / "run", small_disk / "filler"
    process = start(out, [*flags, "--keep", "1"])
    wait_for(out, 12, process)
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 65536):
            pass
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "left. Make room" in said or "No space left" in said, said
    found = audit(str(out))
    assert found.ok, found.faults
    filler.unlink()
    finish(out, [*flags, "--keep", "1"])
    assert_proved(out)
    assert outcome(out) == outcome(whole)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of the run that a launcher has started, by their ranks."""
    found = [child for child in psutil.Process(process.pid).children(recursive=True) if "RANK" in child.environ()]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


def test_torchrun_goes_on_by_itself_when_a_process_is_lost(flags: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out, flags, processes=2, torchrun=True, restarts=1)
    wait_for(out, 24, process)
    workers(process)[1].kill()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "is gone" in said
    assert len(events(out, "resume")) == 1
    assert said_at_the_end(out)["outcome"] == "done"
    assert_proved(out)
    assert steps(out) == steps(whole)


FAULTS = ("kill", "term", "usr1", "interrupt", "hang", "lost", "elastic", "frozen", "full")


class Faults:
    """One run, ended again and again in ways that are drawn."""

    def __init__(self, out: Path, flags: list[str], seed: int, marker: Path) -> None:
        self.out, self.flags, self.marker = out, [*flags, "--hang-minutes", "0.06"], marker
        self.draw = random.Random(seed)
        self.filler = out.parent / "filler"

    def once(self, fault: str) -> None:
        """Starts it on one to three processes and ends it by a fault, soon or after some steps."""
        alone = fault in ("interrupt", "full")
        number = 1 if alone else self.draw.randint(2, 3) if fault in ("lost", "elastic", "frozen") else 0
        number = number or self.draw.randint(1, 3)
        how: dict[str, Any] = {"processes": number}
        if fault == "elastic":
            how |= {"torchrun": True, "restarts": 1}
        if fault == "hang":
            self.marker.unlink(missing_ok=True)
            how["hang"] = (
                f"{self.draw.randrange(number)}:{count(self.out) + self.draw.randint(0, 12)}:sleeping:{self.marker}"
            )
        process = start(self.out, self.flags, **how)
        self._wait(process, count(self.out) + self.draw.randint(1, 15))
        if process.poll() is None:
            time.sleep(self.draw.uniform(0, 0.3))
            self._do(fault, process)
        try:
            process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end after the fault {fault!r}") from None
        finally:
            self.filler.unlink(missing_ok=True)

    def _do(self, fault: str, process: subprocess.Popen[str]) -> None:
        ranks = workers(process) or [psutil.Process(process.pid)]
        if fault == "kill":
            for rank in ranks:
                rank.kill()
            process.kill()
        elif fault in ("term", "usr1"):
            process.send_signal(signal.SIGTERM if fault == "term" else signal.SIGUSR1)
        elif fault == "interrupt":
            process.send_signal(signal.SIGINT)
            time.sleep(self.draw.uniform(0.001, 0.05))
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        elif fault in ("lost", "elastic"):
            self.draw.choice(ranks).kill()
            if fault == "elastic":
                self._wait(process, count(self.out) + 6)
                process.terminate()
        elif fault == "frozen":
            self.draw.choice(ranks).suspend()  # its launcher ends it when the others have ended
        elif fault == "full":
            with self.filler.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(b"\0" * 65536):
                    pass

    def _wait(self, process: subprocess.Popen[str], samples: int) -> None:
        until = time.monotonic() + 40
        while count(self.out) < samples and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)


@pytest.mark.soak
def test_two_hundred_faults_on_one_run(data: Path, flags: list[str], small_disk: Path, tmp_path: Path) -> None:
    seed, out = random.randrange(10**6), small_disk / "run"
    print("the faults are drawn from", seed)
    flags = [*flags, "--keep", "1"]
    faults = Faults(out, [*flags, "--epochs", "100000"], seed, tmp_path / "stuck")
    for number in range(200):
        fault = faults.draw.choice(FAULTS)
        faults.once(fault)
        if out.exists() and list(out.glob("keys-rank*.jsonl")):
            found = audit(str(out))
            assert found.ok, (number, fault, found.faults)
            print(number, fault, found.saved_at, len(found.epochs))
    epochs = audit(str(out)).saved_at // SAMPLES + 1
    print(finish(out, [*flags, "--epochs", str(epochs)]))
    assert_proved(out, epochs)
    loader = ShardLoader(
        data, batch_size=1, batches_per_step=3, sub_epochs=2, seed=3, window=8, lanes=2, rank=0, world_size=1
    )
    expected: dict[int, list[list[str]]] = {}
    batches: list[list[str]] = []
    while loader.consumed_samples < epochs * SAMPLES:
        for batch in loader:
            batches.append(list(batch.keys))
            if batch.ends_step:
                expected[batch.consumed_samples] = sorted(batches)
                batches = []
    assert steps(out) == expected
