"""Work shared among processes: in order, bounded, and its failures told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardpipe.errors import AudioError, ShardpipeError
from shardpipe.runtime.jobs import in_order
from shardpipe.runtime.stopping import abandoned


def some_squares(numbers: list[int]) -> list[int]:
    """At most two of them, the later the sooner."""
    time.sleep(0.001 * (numbers[0] % 3))
    return [number**2 for number in numbers[:2]]


def fails_at_7(numbers: list[int]) -> list[int]:
    if 7 in numbers:
        raise AudioError("seven", key="7", fix="Count on.")
    return numbers


def dies(_: list[int]) -> list[int]:
    os._exit(1)


def chunks_of(n: int, size: int) -> list[list[int]]:
    return [list(range(n))[at : at + size] for at in range(0, n, size)]


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(("n", "chunk"), [(0, 4), (1, 4), (50, 1), (50, 2), (51, 5)])
def test_results_come_in_order(jobs: int, n: int, chunk: int) -> None:
    assert list(in_order(some_squares, chunks_of(n, chunk), jobs=jobs)) == [number**2 for number in range(n)]


def test_items_are_taken_as_they_are_needed() -> None:
    taken = 0

    def chunks() -> Iterator[list[int]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield [number] * 4

    results = in_order(some_squares, chunks(), jobs=2)
    assert next(results) == 0
    assert taken <= 2 * 2
    results.close()


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_comes_whole_and_in_its_place(jobs: int) -> None:
    results = in_order(fails_at_7, chunks_of(20, 1), jobs=jobs)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(AudioError, match="sample '7'.*seven.*Count on") as caught:
        next(results)
    assert caught.value.key == "7"


def test_a_worker_that_dies() -> None:
    with pytest.raises(ShardpipeError, match=r"worker process died.*fewer jobs"):
        list(in_order(dies, chunks_of(4, 1), jobs=2))


def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from shardpipe.runtime.jobs import in_order\nprint(list(in_order(sorted, [[1], [2]], jobs=2)))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    # Python's own resource tracker may have a word to say after it.
    (told,) = [line for line in done.stderr.splitlines() if "worker processes import the script" in line]
    assert 'under `if __name__ == "__main__":`' in told
    assert done.stderr.count("Traceback") <= 2, "of the error and of what it comes from, none of the workers"
    script.write_text(
        "from shardpipe.runtime.jobs import in_order\nif __name__ == '__main__':\n"
        "    print(list(in_order(sorted, [[1], [2]], jobs=2)))\n"
    )
    assert subprocess.run([sys.executable, str(script)], capture_output=True, text=True).stdout == "[1, 2]\n"


def wait_until_abandoned(numbers: list[int]) -> list[int]:
    """The first item at once, the others only once nobody waits for them."""
    while numbers[0] and not abandoned():
        time.sleep(0.01)
    return numbers


def test_what_workers_read_is_given_up_with_its_reader() -> None:
    results = in_order(wait_until_abandoned, chunks_of(4, 1), jobs=2)
    assert next(results) == 0
    results.close()  # it would never return
