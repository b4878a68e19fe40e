"""The demo of the data service: it tells the truth of what it did, leaves no process behind, and comes out the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shardpipe.cli import app
from shardpipe.demo import run_service_demo
from shardpipe.demo.chart import Row, span_chart
from shardpipe.demo.compare import Check
from shardpipe.demo.replicas import Replica, running
from shardpipe.demo.served import FROZEN, GOES_ON, KILLED, LISTENS, STARTED, Served, compare_served
from shardpipe.demo.service_report import service_report
from shardpipe.demo.stage import Course, Done
from shardpipe.errors import ConfigError, ShardpipeError
from tests.demo.test_demo import EPOCHS, SAMPLES, read_page, records, write_run
from tests.speech import pack_speech

ACTS = [KILLED, FROZEN, STARTED, LISTENS, GOES_ON]


def compared(tmp_path: Path, change: Callable[[Any, Any], None] | None = None) -> Served:
    """A run by itself beside one by servers; the second step of either took 2 s, a quarter and half of it waiting."""
    for name, wait in (("alone", 0.25), ("served", 0.5)):
        metrics, deliveries = records()
        steps = [line for line in metrics if line["event"] == "step"]
        for i, step in enumerate(steps):
            step |= {"utt_per_s": 1.0 if i == 1 else 2.0, "data_wait": wait if i == 1 else 0.0}
            step |= {"servers": 1 if i == 1 else 2, "server_retries": i, "server_hedges": 1}
        # What is before the first step is no wait for a batch.
        steps[0] |= {"utt_per_s": 0.01, "data_wait": 0.9}
        if change and name == "served":
            change(metrics, deliveries)
        write_run(tmp_path / name, metrics, deliveries)
    course = Course(points=[(0.0, 0), (4.0, 6), (9.0, 12)])
    done = [Done(name=name, seconds=2.0 + i, consumed_samples=4 + i) for i, name in enumerate(ACTS)]
    return compare_served(
        tmp_path / "alone",
        tmp_path / "served",
        alone=course,
        served=replace(course, done=done),
        samples=SAMPLES,
        epochs=EPOCHS,
    )


def swap_two_batches(_: Any, deliveries: Any) -> None:
    deliveries[-1]["keys"], deliveries[-2]["keys"] = deliveries[-2]["keys"], deliveries[-1]["keys"]


def row(comparison: Served, name: str) -> Check:
    return next(check for check in comparison.checks if check.name == name)


def test_what_was_done_and_what_came_of_it_is_told(tmp_path: Path) -> None:
    comparison = compared(tmp_path)
    assert comparison.passed
    assert row(comparison, FROZEN).disturbed == "sample 5, 3.0 s"
    assert row(comparison, "Servers in use, by step").disturbed == "1 to 2, at last 2"
    assert row(comparison, "Requests made again").disturbed == "5"
    assert row(comparison, "Slow ones, made of two").disturbed == "1"
    longest, share = row(comparison, "Longest wait for a batch"), row(comparison, "Share of time in waiting")
    assert (longest.undisturbed, longest.disturbed) == ("0.50 s", "1.00 s")
    # Of 2 s and four times 1 s.
    assert (share.undisturbed, share.disturbed) == ("8.3%", "16.7%")


def test_the_report_is_one_page_of_it(tmp_path: Path) -> None:
    page = service_report(compared(tmp_path), [("shardpipe serve data", None), ("python -m x", 3.2)])
    read_page(page)
    assert "<li><code>shardpipe serve data</code></li>" in page
    assert "<li><code>python -m x</code> <span>3 s</span></li>" in page
    assert all(label in page for label in ("A killed", "B frozen", "A is back", "B goes on"))
    # From B frozen to A to be asked again.
    assert "for 2.0 seconds there was none" in page
    assert "Killed, frozen, started anew: the same." in page


def test_the_report_shows_what_failed(tmp_path: Path) -> None:
    page = service_report(compared(tmp_path, swap_two_batches), [])
    assert "The two runs differ." in page
    assert "did not in: Batches: keys and order." in page


def test_spans_lie_where_their_times_are() -> None:
    svg = span_chart([Row(label="<a>", spans=[(5, 10, "up")])], title="rows", x_range=(0, 10))
    # Half of the axis, which goes from 64 to 900.
    assert '<rect class="up" x="482.0" y="6.0" width="418.0"' in svg
    assert "&lt;a&gt;" in svg


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("service-demo"), 4)


def process_of(replica: Replica) -> Any:
    return replica._process


def told_to_end(first: Replica, second: Replica) -> None:
    """Has both serve, the first one killed and started anew, the second one frozen; then this process gets SIGTERM."""
    with running(first, second):
        port = first.port
        assert port != second.port
        first.kill()
        second.freeze()
        first.start()
        while not first.listens:
            time.sleep(0.05)
        assert first.port == port
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_a_replica_keeps_its_port_and_none_is_left(data: Path, tmp_path: Path) -> None:
    replicas, before = (
        [Replica(name, data, tmp_path / f"{name}.log") for name in "AB"],
        signal.getsignal(signal.SIGTERM),
    )
    with pytest.raises(SystemExit) as end:
        told_to_end(*replicas)
    assert end.value.code == 128 + signal.SIGTERM
    assert [process_of(replica).returncode for replica in replicas] == [-signal.SIGKILL] * 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_replica_that_fails_is_reported_in_its_own_words(tmp_path: Path) -> None:
    replica = Replica("A", tmp_path / "nothing", tmp_path / "A.log")
    with pytest.raises(ShardpipeError, match="replica A ended with code 1: shardpipe: ") as error, running(replica):
        pass
    assert "A.log" in error.value.fix


@pytest.mark.slow
def test_the_demo_runs_and_the_two_runs_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = run_service_demo(tmp_path / "demo", epochs=1)
    assert comparison.passed, comparison.checks
    assert [done.name for done in comparison.served.done] == ACTS
    counts = [done.consumed_samples for done in comparison.served.done]
    assert 0 < counts[0] < counts[1] < counts[4] < 420
    steps = comparison.disturbed.steps
    # Each of the two has made batches alone.
    assert {step["servers"] for step in steps} >= {1, 2}
    assert steps[-1]["server_retries"] > 0
    assert "differs" not in capsys.readouterr().out
    read_page((tmp_path / "demo" / "report.html").read_text())


@pytest.mark.parametrize(("change", "code"), [(None, 0), (swap_two_batches, 1)])
def test_the_command_fails_when_the_runs_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, Any], None] | None, code: int
) -> None:
    comparison, asked = compared(tmp_path, change), []

    def run(out: Path) -> Served:
        asked.append(out)
        return comparison

    monkeypatch.setattr("shardpipe.demo.run_service_demo", run)
    assert CliRunner().invoke(app, ["serve", "--demo"]).exit_code == code
    assert CliRunner().invoke(app, ["serve", "--demo", "-o", "there"]).exit_code == code
    assert asked == [Path("runs/serve-demo"), Path("there")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "DIR", "--demo"], "DIR is 'DIR', but --demo"),
        (["serve", "--config", "serve.yaml", "--demo"], "config is 'serve.yaml', but --demo"),
        (["serve", "DIR", "-o", "there"], "out is 'there', but it is the folder of --demo"),
    ],
)
def test_the_demo_has_its_own_data(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert said in str(result.exception)
