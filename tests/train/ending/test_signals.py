"""What asks a run to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from shardpipe.train.ending import AGAIN, stopping
from shardpipe.train.ending.exits import INTERRUPTED


def wait_until(holds: object) -> None:
    assert callable(holds)
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_asks_and_does_nothing_else(number: signal.Signals) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    with stopping(said.append, None) as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        wait_until(lambda: stop() and stop.has_been_asked())
        if number != signal.SIGINT:
            os.kill(os.getpid(), number)
        time.sleep(0.05)
    assert said == [f"{number.name}: stopping after this step"]
    assert signal.getsignal(number) == before


def test_the_end_of_its_time_is_no_signal() -> None:
    said: list[str] = []
    with stopping(said.append, 1e-9) as stop:
        assert stop()
        assert stop()
        assert not stop.has_been_asked()
        stop.receive(signal.SIGTERM)
        assert stop.has_been_asked()
    assert said == ["1e-09 minutes are over: stopping", "SIGTERM: stopping after this step"]


HELD = """
import ctypes, os, signal, sys, time
from shardpipe.train.ending import stopping
with stopping(lambda text: print(text, flush=True), None):
    print("ready", flush=True)
    ctypes.CDLL(None).sleep(100)  # lets others run, and returns at a signal
    ctypes.CDLL(None).sleep(100)
    ctypes.CDLL(None).sleep(100)
"""


def test_a_second_ctrl_c_ends_a_process_that_waits_in_a_library() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HELD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "SIGINT: stopping after this step\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    assert process.returncode == INTERRUPTED
    assert "SIGINT again: ended at once" in said


LEAVES = HELD.replace("stopping(lambda text: print(text, flush=True), None)", "leaving()")
LEAVES = LEAVES.replace("import stopping", "import leaving")


def test_while_there_is_nothing_to_save_it_ends_a_process_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", LEAVES], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(10) == AGAIN
