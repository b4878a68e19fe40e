"""The demo: its comparison sees every difference, its report is one page, its corpus is whole, and it runs."""

from __future__ import annotations

import copy
import html.parser
import itertools
import json
import math
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from shardpipe.audio import probe
from shardpipe.cli import app
from shardpipe.demo import Comparison, run_demo
from shardpipe.demo.chart import ticks
from shardpipe.demo.compare import History, consumed_samples
from shardpipe.demo.report import report
from shardpipe.demo.resumed import compare
from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.lists import read_list

SAMPLES = {f"key{i}": 1000 + i for i in range(6)}
EPOCHS, BATCH = 2, 2
CHECKPOINT, KILLED_AT = 8, 10

Records = list[dict[str, Any]]


def records() -> tuple[Records, Records]:
    """metrics.jsonl and the key log of a run of 2 epochs of 6 samples, in batches of 2."""
    metrics: Records = [{"event": "start", "consumed_samples": 0}]
    deliveries: Records = []
    keys = list(SAMPLES)
    for step in range(1, EPOCHS * len(SAMPLES) // BATCH + 1):
        count = step * BATCH
        loss = 1 / step + 1e-17
        metrics.append(
            {"event": "step", "consumed_samples": count, "step": step, "loss": loss, "grad_norm": loss * 3, "lr": 1e-3}
        )
        epoch, place = divmod(count - BATCH, len(SAMPLES))
        deliveries.append({"consumed_samples": count, "epoch": epoch, "keys": keys[place : place + BATCH]})
        if count % len(SAMPLES) == 0:
            metrics.append({"event": "valid", "consumed_samples": count, "loss": loss, "wer": 0.5, "cer": 0.25})
    return metrics, deliveries


def write_run(run: Path, metrics: Records, deliveries: Records, weights: bytes = b"weights") -> None:
    for name, lines in (("metrics.jsonl", metrics), ("keys-rank0.jsonl", deliveries)):
        run.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for count, content in ((CHECKPOINT, b"earlier"), (EPOCHS * len(SAMPLES), weights)):
        folder = run / "checkpoints" / f"{count:012d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model").write_bytes(content)


def compared(tmp_path: Path, change: Callable[[Records, Records], None] | None = None, **options: Any) -> Comparison:
    """An undisturbed run beside a resumed one with `change` made to its records."""
    metrics, deliveries = records()
    write_run(tmp_path / "whole", metrics, deliveries)
    killed = History(
        metrics=[line for line in metrics if line["consumed_samples"] <= KILLED_AT],
        deliveries=[line for line in deliveries if line["consumed_samples"] <= KILLED_AT],
    )
    metrics, deliveries = copy.deepcopy((metrics, deliveries))
    metrics.append({"event": "resume", "consumed_samples": CHECKPOINT})
    if change:
        change(metrics, deliveries)
    write_run(tmp_path / "resumed", metrics, deliveries, **options)
    return compare(tmp_path / "whole", killed, tmp_path / "resumed", samples=SAMPLES, epochs=EPOCHS)


def failed(comparison: Comparison) -> list[str]:
    return [check.name for check in comparison.checks if check.passed is False]


def test_equal_runs_pass_and_what_was_spared_is_counted(tmp_path: Path) -> None:
    comparison = compared(tmp_path)
    assert comparison.passed
    rows = {check.name: check.disturbed for check in comparison.checks}
    assert rows["Every sample once an epoch"] == "2 epochs of 6"
    # Of epoch 2, key0 and key1 came before the checkpoint at 8.
    assert rows["Not replayed of epoch 2"] == "2 samples, 0.00 MB"
    assert rows["Lost in the kill, redone"] == "2 samples"


def lose_a_batch(_: Records, deliveries: Records) -> None:
    del deliveries[-1]


def give_twice(_: Records, deliveries: Records) -> None:
    deliveries[-1]["keys"] = deliveries[-2]["keys"]


def swap_two_batches(_: Records, deliveries: Records) -> None:
    deliveries[-1]["keys"], deliveries[-2]["keys"] = deliveries[-2]["keys"], deliveries[-1]["keys"]


def change_one_bit_of_a_loss(metrics: Records, _: Records) -> None:
    step = next(line for line in metrics if line["event"] == "step" and line["step"] == 5)
    step["loss"] = math.nextafter(step["loss"], 1)


def lose_a_step(metrics: Records, _: Records) -> None:
    metrics.remove(next(line for line in metrics if line["event"] == "step"))


def change_an_evaluation(metrics: Records, _: Records) -> None:
    next(line for line in metrics if line["event"] == "valid")["wer"] = 0.75


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lose_a_batch, ["Every sample once an epoch", "Batches: keys and order"]),
        (give_twice, ["Every sample once an epoch", "Batches: keys and order"]),
        (swap_two_batches, ["Batches: keys and order"]),
        (change_one_bit_of_a_loss, ["Loss, gradient norm, rate"]),
        (lose_a_step, ["Loss, gradient norm, rate"]),
        (change_an_evaluation, ["Validation loss, WER, CER"]),
    ],
)
def test_every_difference_is_seen(tmp_path: Path, change: Callable[[Records, Records], None], names: list[str]) -> None:
    comparison = compared(tmp_path, change)
    assert failed(comparison) == names
    assert not comparison.passed


def test_what_is_missing_or_twice_is_said(tmp_path: Path) -> None:
    rows = {check.name: check.disturbed for check in compared(tmp_path, give_twice).checks}
    assert rows["Every sample once an epoch"] == "epoch 2: 2 missing, 2 twice"


def test_another_model_is_seen(tmp_path: Path) -> None:
    assert failed(compared(tmp_path, weights=b"weighty")) == ["Final checkpoint, every byte"]


def test_a_line_cut_by_the_kill_is_left_out(tmp_path: Path) -> None:
    assert consumed_samples(tmp_path) == 0
    write_run(tmp_path, *records())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "consumed_sa')
    assert consumed_samples(tmp_path) == EPOCHS * len(SAMPLES)
    assert History.read(tmp_path).consumed_samples == EPOCHS * len(SAMPLES)


class Reader(html.parser.HTMLParser):
    """Collects the elements that are open, those seen, and all attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_report_is_one_page_that_needs_no_network(tmp_path: Path) -> None:
    page = report(compared(tmp_path), [("python -m <script>alert(1)</script>", 3.2)])
    reader = read_page(page)
    assert not {tag for tag, _ in reader.seen} & {"script", "link", "img", "iframe", "object"}
    assert not any(name in attributes for _, attributes in reader.seen for name in ("src", "href", "xlink:href"))
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;script&gt;" in page
    assert "SIGKILL at 10" in page
    assert "checkpoint at 8" in page
    assert "Killed, resumed, the same." in page


def test_the_report_shows_what_failed(tmp_path: Path) -> None:
    page = report(compared(tmp_path, give_twice), [])
    read_page(page)
    assert "The two runs differ." in page
    assert "did not in: Every sample once an epoch; Batches: keys and order." in page
    assert page.count('<rect class="twice"') == 2
    assert page.count('<rect class="missing"') == 2


@given(
    low=st.floats(-1e6, 1e6),
    extent=st.floats(1e-3, 1e6),
    count=st.integers(2, 12),
)
def test_ticks_are_even_and_within(low: float, extent: float, count: int) -> None:
    high = low + extent
    found = ticks(low, high, count)
    assert 1 <= len(found) <= count + 1
    slack = 1e-6 * extent
    assert all(low - slack <= value <= high + slack for value in found)
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-3, abs_tol=slack) for step in steps)


def test_the_corpus_is_whole_small_and_packs() -> None:
    with as_file(files("shardpipe.demo") / "corpus") as corpus:
        audio = sorted((corpus / "audio").iterdir())
        utterances = [u for name in ("data.list", "valid.list") for u in read_list(corpus / name)]
        assert sorted(Path(u.audio).name for u in utterances) == [path.name for path in audio]
        assert sum(path.stat().st_size for path in audio) <= 3_000_000
        for path in audio:
            info = probe(path.read_bytes())
            assert (info.codec, info.sample_rate, info.channels) == ("opus", 16000, 1)
            assert 0.5 < info.frames / info.sample_rate < 4
        assert len({u.key for u in utterances}) == len(utterances) == 456


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="new folder"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_training_that_fails_is_reported_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardpipe.demo.stage._SETTINGS", ("--batch-size", "0"))
    with pytest.raises(ShardpipeError, match=r"code 2: shardpipe-train: batch_size is 0") as error:
        run_demo(tmp_path / "demo")
    assert "uninterrupted.log" in error.value.fix
    assert not (tmp_path / "demo" / "report.html").exists()


@pytest.mark.slow
def test_the_demo_runs_and_the_two_runs_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    for left_by_an_earlier_demo in (".shardpipe-demo", "old.log"):
        (out / left_by_an_earlier_demo).touch()
    comparison = run_demo(out, epochs=1)
    assert not (out / "old.log").exists()
    assert comparison.passed, comparison.checks
    assert comparison.checkpoint < comparison.killed_at < 420
    assert "differs" not in capsys.readouterr().out
    read_page((out / "report.html").read_text())


@pytest.mark.parametrize(("change", "code"), [(None, 0), (give_twice, 1)])
def test_the_command_fails_when_the_runs_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Records, Records], None] | None, code: int
) -> None:
    comparison = compared(tmp_path, change)
    monkeypatch.setattr("shardpipe.demo.run_demo", lambda _: comparison)
    assert CliRunner().invoke(app, ["demo"]).exit_code == code
