"""A process that gets nowhere ends in time, and says where it was; one that gets on is left alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardpipe.train.ending import AGAIN, FAILED, ExitFile, Watchdog, stacks_folder

MINUTES = 0.01


def test_one_that_gets_on_is_left_alone_and_leaves_nothing(tmp_path: Path) -> None:
    folder = stacks_folder(tmp_path)
    with Watchdog(5 * MINUTES, folder, (0, 1), ExitFile(tmp_path, 0, "one")) as watchdog:
        for _ in range(40):
            time.sleep(0.1)
            watchdog.saw("a step", ["utt"])
    assert list(tmp_path.iterdir()) == []


def test_without_a_time_nothing_is_watched(tmp_path: Path) -> None:
    with Watchdog(None, tmp_path / "stacks", (0, 1), ExitFile(tmp_path, 0, "one")) as watchdog:
        watchdog.saw("a step")
    assert list(tmp_path.iterdir()) == []


def test_folders_without_stacks_are_cleared_away(tmp_path: Path) -> None:
    for name, text in (("old", "stacks of something"), ("killed", "")):
        (tmp_path / "stacks" / name).mkdir(parents=True)
        (tmp_path / "stacks" / name / "rank0.txt").write_text(text)
    folder = stacks_folder(tmp_path)
    assert sorted(path.name for path in (tmp_path / "stacks").iterdir()) == sorted(["old", folder.name])


WAITS = """
import sys, time
from pathlib import Path
from shardpipe.train.ending import ExitFile, Watchdog
run, minutes, rank, size = Path(sys.argv[1]), *map(float, sys.argv[2:])
with Watchdog(minutes, run / "stacks", (int(rank), int(size)), ExitFile(run, int(rank), "one")) as watchdog:
    watchdog.saw("the step after sample 8", ["utt1", "ütt2"])
    print("ready", flush=True)
    time.sleep(60)
"""


def waiting(run: Path, rank: int, minutes: float = MINUTES, size: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WAITS, str(run), str(minutes), str(rank), str(size)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        _, said = process.communicate(timeout=40)
    return process.returncode, said


def test_all_say_where_they_are_though_one_alone_is_late(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    patient = waiting(tmp_path, 1, minutes=0.5)
    assert [ended(process)[0] for process in (waiting(tmp_path, 0), patient)] == [AGAIN, AGAIN]
    for rank, what in enumerate(("nothing has ended for", "process 0 hangs")):
        text = (tmp_path / "stacks" / f"rank{rank}.txt").read_text()
        assert f"process {rank} of 2: {what}" in text
        assert "last keys: utt1, ütt2" in text
        assert "time.sleep" not in text, "stacks name functions and lines"
        assert 'File "<string>", line 9 in <module>' in text


def test_one_without_a_word_is_named(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    code, said = ended(waiting(tmp_path, 0, size=3))
    assert code == AGAIN
    assert "no word from process 1, 2" in said


def test_who_waits_for_one_that_has_failed_ends_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    process = waiting(tmp_path, 0, minutes=0.5)
    ExitFile(tmp_path, 1, "one").write("failed", FAILED, "its disk is full")
    code, said = ended(process)
    assert code == FAILED
    assert "process 1 has ended the run: its disk is full" in said


def test_a_place_that_takes_no_stacks_leaves_standard_error(tmp_path: Path) -> None:
    code, said = ended(waiting(tmp_path / "nowhere", 0, size=1))
    assert code == AGAIN
    assert 'File "<string>", line 9 in <module>' in said


@pytest.mark.parametrize("run", ["run"])
def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, run: str) -> None:
    (tmp_path / run).write_text("a file")
    stacks_folder(tmp_path / run)


def test_opening_and_winding_up_have_five_minutes_at_least(tmp_path: Path) -> None:
    for minutes, least in ((MINUTES, 300), (10, 600)):
        watchdog = Watchdog(minutes, tmp_path, (0, 1), ExitFile(tmp_path, 0, "one"))
        assert watchdog._limit == least
        watchdog.saw("a step", ["utt"])
        assert watchdog._limit == 60 * minutes
        watchdog.saw("the winding up", trains=False)
        assert watchdog._limit == least
