"""An audit passes on what a run has written, and on nothing from which a line was removed, doubled or changed."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from isal.isal_zlib import crc32

from shardpipe.errors import StoreError
from shardpipe.pack import PackOptions, pack
from shardpipe.train.audit import audit
from shardpipe.train.cli import main
from shardpipe.train.task import Learner
from tests.speech import pack_speech, write_list
from tests.training import FLAGS, markers, one_thread

SAMPLES = 24
RUN = [*FLAGS, "--epochs", "2", "--sub-epochs", "2", "--on-error", "skip", "--max-seconds", "0.7", "--keep", "99"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 24 samples number 0 is damaged, one is too short for its text, and some are longer than 0.7 s."""
    folder = tmp_path_factory.mktemp("data")
    listed = write_list(folder, SAMPLES, codecs=("wav",), seconds=(0.3, 0.8))
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    shortest = min(rows, key=lambda row: (folder / row["wav"]).stat().st_size)
    shortest["txt"] *= 30
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack(listed, folder / "packed", options=PackOptions(shard_samples=8, relative=True))
    shard = folder / "packed" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 0xFF
    shard.write_bytes(content)
    return folder / "packed"


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two starts, with a step that has no finite gradient."""
    out = tmp_path_factory.mktemp("done") / "run"
    calls = iter(range(10**6))

    def forward(self: Learner, batch: Any, *, train: bool, whole: Callable[..., Any] = Learner.forward) -> Any:
        result = whole(self, batch, train=train)
        if train and next(calls) == 2:
            return replace(result, loss=result.loss * math.nan)
        return result

    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "forward", forward)
        assert main([*RUN, "--data", str(data), "--out", str(out), "--max-sub-epochs", "1"]) == 0
        assert main([*RUN, "--data", str(data), "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


def log_of(run: Path, rank: int = 0) -> Path:
    return run / f"keys-rank{rank}.jsonl"


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log_of(run).read_text().splitlines()]


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """As a log is, with checksums that fit."""
    chain, text = 0, b""
    for line in lines:
        body = json.dumps({k: v for k, v in line.items() if k != "chain"}, separators=(",", ":")).encode()[:-1]
        chain = crc32(body, chain)
        text += b'%s,"chain":"%08x"}\n' % (body, chain)
    path.write_bytes(text)


def test_all_that_came_and_did_not_is_listed(done: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = audit(str(done))
    assert found.ok, found.faults
    assert found.saved_at == 2 * SAMPLES
    for number, epoch in enumerate(found.epochs):
        assert (epoch.epoch, epoch.samples, epoch.consumed, epoch.elsewhere) == (number, SAMPLES, SAMPLES, 0)
        assert epoch.unreadable == [0]
        assert len(epoch.left_out) == 1
        assert epoch.excluded_ordinals is not None
        assert 0 < len(epoch.excluded_ordinals) == epoch.excluded == SAMPLES - epoch.came
    assert len(found.not_finite) == 1
    assert found.lengths == ""
    assert main(["audit", str(done)]) == 0
    said = capsys.readouterr().out
    assert "steps without a finite gradient: 1, ending at" in said
    assert "every one came once an epoch" in said
    assert main(["audit", str(done), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"][0]["unreadable"] == [0]


def test_every_kind_of_line_is_in_this_log(done: Path) -> None:
    kinds = {name for line in lines_of(done) for name in line}
    assert kinds >= {"basis", "samples", "unreadable", "left_out", "excluded", "not_finite", "keys"}


def removed(text: bytes) -> bytes:
    return b""


def doubled(text: bytes) -> bytes:
    return text + text


def changed(text: bytes) -> bytes:
    return re.sub(rb"(\d)", lambda digit: b"%d" % (9 - int(digit[1])), text, count=1)


@pytest.mark.parametrize("change", [removed, doubled, changed])
def test_a_line_removed_doubled_or_changed_is_found(run: Path, change: Callable[[bytes], bytes]) -> None:
    lines = log_of(run).read_bytes().splitlines(keepends=True)
    assert len(lines) > 12
    for i, line in enumerate(lines):
        log_of(run).write_bytes(b"".join([*lines[:i], change(line), *lines[i + 1 :]]))
        found = audit(str(run))
        assert not found.ok, (i, line)
        if change is not removed or i + 1 < len(lines):
            at = i + 1 if change is not doubled else i + 2
            assert any(f"keys-rank0.jsonl, line {at}:" in fault for fault in found.faults), (i, line, found.faults)


def forged() -> Iterator[Any]:
    """Ways to change a line so that its checksum fits."""

    def other(name: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
        def change(line: dict[str, Any]) -> dict[str, Any] | None:
            return {**line, name: value(line[name])} if name in line else None

        return change

    yield pytest.param(other("samples", lambda samples: [(samples[0] + 1) % SAMPLES, *samples[1:]]), id="another")
    yield pytest.param(other("samples", lambda samples: [SAMPLES, *samples[1:]]), id="none of the dataset's")
    yield pytest.param(other("samples", lambda samples: samples[1:]), id="one less")
    yield pytest.param(other("samples", lambda samples: [*samples, samples[0]]), id="one more")
    yield pytest.param(other("epoch", lambda epoch: 1 - epoch), id="another epoch")
    yield pytest.param(other("consumed_samples", lambda count: count + 1), id="another count")
    yield pytest.param(other("unreadable", lambda _: []), id="nothing unreadable")
    yield pytest.param(other("left_out", lambda _: []), id="nothing too short")
    yield pytest.param(other("excluded", lambda number: number + 1), id="more left out")
    yield pytest.param(other("excluded", lambda _: 0), id="nothing left out")
    yield pytest.param(other("not_finite", lambda _: False), id="a finite gradient")
    yield pytest.param(other("basis", lambda basis: {**basis, "num_samples": SAMPLES + 1}), id="a larger dataset")
    yield pytest.param(lambda line: {} if "samples" in line else None, id="a batch removed")


@pytest.mark.parametrize("change", list(forged()))
def test_what_does_not_add_up_is_found_without_checksums(
    run: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]
) -> None:
    lines, found = lines_of(run), 0
    for i, line in enumerate(lines):
        if (new := change(line)) is not None:
            found += 1
            write(log_of(run), [*lines[:i], *([new] if new else []), *lines[i + 1 :]])
            assert not audit(str(run)).ok, line
    assert found


def test_a_sample_that_came_twice_is_named_with_both_places(run: Path) -> None:
    lines = lines_of(run)
    at = [i for i, line in enumerate(lines) if line.get("epoch") == 0]
    lines[at[2]]["samples"][0] = lines[at[0]]["samples"][0]
    write(log_of(run), lines)
    (text,) = (fault for fault in audit(str(run)).faults if "times" in fault)
    key = lines[at[0]]["keys"][0]
    assert f"({key}) came 2 times" in text
    assert f"line {at[0] + 1}; keys-rank0.jsonl, line {at[2] + 1}" in text


def test_logs_of_several_processes_are_one(run: Path) -> None:
    lines = lines_of(run)
    mine = [[line for i, line in enumerate(lines) if "samples" not in line or i % 3 == 0]]
    mine += [[line for i, line in enumerate(lines) if "samples" in line and i % 3 == rank] for rank in (1, 2)]
    for rank, part in enumerate(mine):
        write(log_of(run, rank), part)
    assert audit(str(run)).ok
    write(log_of(run, 1), mine[1][:-1])
    assert not audit(str(run)).ok
    log_of(run, 1).unlink()
    assert not audit(str(run)).ok


def test_what_another_dataset_has_is_counted_apart(run: Path) -> None:
    """Nothing makes such logs yet; an audit says of them what it can."""
    lines = lines_of(run)
    end = next(i for i, line in enumerate(lines) if line["consumed_samples"] > SAMPLES)
    other = {"consumed_samples": SAMPLES, "basis": {"dataset": "other", "num_samples": 8}}
    rest = [{"consumed_samples": SAMPLES + 8, "epoch": 3, "samples": list(range(8))}]
    write(log_of(run), [*lines[:end], other, *rest])
    found = audit(str(run))
    assert [(epoch.epoch, epoch.samples, epoch.came) for epoch in found.epochs][1:] == [(3, 8, 8)]
    assert found.faults[:1] == [f"the logs end at sample {SAMPLES + 8}, and the run is saved at sample {2 * SAMPLES}"]


def test_what_was_left_out_is_compared_with_the_limits(run: Path) -> None:
    for file in (run / "starts").iterdir():
        file.write_text(file.read_text().replace("max_seconds: 0.7", "max_seconds: 0.79"))
    found = audit(str(run))
    assert "samples never came" in found.faults[0]
    assert "utt" in found.faults[0], "by their keys"


def test_without_the_dataset_it_says_what_it_could_not_see(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(re.sub("(?m)^data: .*$", "data: /nowhere", config.read_text()))
    found = audit(str(run))
    assert found.ok
    assert "/nowhere" in found.lengths


def test_where_no_log_was_kept_that_is_said(data: Path, tmp_path: Path) -> None:
    flags = [*RUN, "--data", str(data), "--out", str(tmp_path / "run"), "--no-log-keys", "--max-sub-epochs", "1"]
    assert main(flags) == 0
    assert main([*flags, "--no-log-samples"]) == 0
    assert main([*flags, "--no-log-samples"]) == 0
    assert main(flags) == 0
    (stretch,) = audit(str(tmp_path / "run")).stretches
    saved = sorted(int(name) for name in markers(tmp_path / "run"))
    assert (stretch.since, stretch.until, stretch.why) == (saved[0], saved[2], "not logged")
    assert audit(str(tmp_path / "run")).ok


def test_what_another_run_was_given_is_not_this_ones(done: Path, data: Path, tmp_path: Path) -> None:
    first = min(markers(done))
    flags = [*RUN, "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*flags, "--resume", str(done / "checkpoints" / first)]) == 0
    found = audit(str(tmp_path / "run"))
    assert found.ok, found.faults
    (stretch,) = found.stretches
    assert (stretch.since, stretch.until, stretch.why) == (0, int(first), "elsewhere")
    assert found.epochs[0].elsewhere == int(first)


def test_a_run_without_checkpoint_has_nothing_to_prove(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    found = audit(str(run))
    assert found.ok
    assert list(found.lines())[-1] == "nothing to prove: no checkpoint yet"


def test_no_logs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StoreError, match="there are no key logs"):
        audit(str(tmp_path))
    assert main(["audit", str(tmp_path)]) == 1
    assert "there are no key logs" in capsys.readouterr().err


def test_a_speech_corpus_of_one_sample(tmp_path: Path) -> None:
    data = pack_speech(tmp_path, 1, seconds=(0.5, 0.6))
    assert main([*FLAGS, "--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "3"]) == 0
    found = audit(str(tmp_path / "run"))
    assert found.ok
    assert [epoch.came for epoch in found.epochs] == [1, 1, 1]


def test_a_first_start_without_log_says_where_it_began(done: Path, data: Path, tmp_path: Path) -> None:
    first = min(markers(done))
    flags = [*RUN, "--data", str(data), "--out", str(tmp_path / "run"), "--no-log-keys"]
    place = ["--resume", str(done / "checkpoints" / first)]
    assert main([*flags, *place, "--no-log-samples", "--max-sub-epochs", "1"]) == 0
    found = audit(str(tmp_path / "run"))
    assert found.faults == [f"the logs hold nothing of what the run was given up to sample {found.saved_at}"]
    assert main(flags) == 0
    found = audit(str(tmp_path / "run"))
    assert found.ok, found.faults
    assert [stretch.why for stretch in found.stretches] == ["elsewhere", "not logged"]


def test_another_runs_past_takes_the_place_of_its_own(run: Path, data: Path, tmp_path: Path) -> None:
    other, first = tmp_path / "other", max(markers(run))
    flags = [*RUN, "--data", str(data), "--max-seconds", "0.6", "--epochs", "3"]
    assert main([*flags, "--out", str(other), "--max-sub-epochs", "1"]) == 0
    assert main([*flags, "--out", str(other), "--resume", str(run / "checkpoints" / first)]) == 0
    found = audit(str(other))
    assert found.ok, found.faults
    assert [(stretch.since, stretch.until, stretch.why) for stretch in found.stretches] == [
        (0, int(first), "elsewhere")
    ]


def test_a_run_whose_checkpoints_move_keeps_its_past(run: Path, data: Path, tmp_path: Path) -> None:
    flags = [*RUN, "--data", str(data), "--epochs", "3", "--out", str(run), "--checkpoints", str(tmp_path / "there")]
    assert main([*flags, "--resume", str(run / "checkpoints")]) == 0
    found = audit(str(run))
    assert found.ok, found.faults
    assert not found.stretches
    assert found.saved_at == 3 * SAMPLES


def test_a_damaged_checkpoint_that_was_passed_over_is_none(run: Path, data: Path) -> None:
    counts = sorted(markers(run))
    for file in (run / "checkpoints" / counts[-1]).glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 0xFF
        file.write_bytes(content)
    again = [
        *RUN,
        "--data",
        str(data),
        "--out",
        str(run),
        "--max-minutes",
        "1e-9",
        "--batch-size",
        "1",
        "--window",
        "8",
    ]
    assert main(again) == 0
    shutil.rmtree(run / "checkpoints" / max(set(markers(run)) - set(counts)))
    (run / "metrics.jsonl").write_text(
        "".join(line + "\n" for line in (run / "metrics.jsonl").read_text().splitlines() if '"checkpoint"' not in line)
    )
    found = audit(str(run))
    assert found.ok, found.faults
    assert found.saved_at == int(counts[-2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: re.sub(rb',"chain":"[0-9a-f]{8}"', b"", text),
        lambda text: b"what is this\n" + text,
        lambda text: b"\0" * 100 + b"\n" + text,
        lambda text: text[: len(text) // 2],
    ],
    ids=["emptied", "other ends of lines", "no checksums", "a line before", "NUL", "cut off"],
)
def test_damage_to_a_whole_log_is_found(run: Path, damage: Callable[[bytes], bytes]) -> None:
    log_of(run).write_bytes(damage(log_of(run).read_bytes()))
    assert not audit(str(run)).ok


def test_what_is_no_file_or_no_log_of_a_process(run: Path) -> None:
    for name in ("keys-rank00.jsonl", "keys-rank\u0660.jsonl", "keys-rank-1.jsonl", "keys-rankx.jsonl"):
        (run / name).write_text("planted\n")
    assert audit(str(run)).ok
    (run / "keys-rank7.jsonl").symlink_to(run / "nowhere")
    (run / "keys-rank8.jsonl").mkdir()
    faults = audit(str(run)).faults
    assert [fault.partition(" (")[0] for fault in faults] == [
        "keys-rank7.jsonl: it cannot be read",
        "keys-rank8.jsonl: it cannot be read",
    ]


@pytest.mark.parametrize("size", [0, 1 << 60])
def test_a_dataset_of_no_size_is_a_fault(run: Path, size: int) -> None:
    lines = lines_of(run)
    lines[0]["basis"]["num_samples"] = size
    write(log_of(run), lines)
    assert not audit(str(run)).ok


def test_absurd_limits_in_the_settings_are_none(run: Path) -> None:
    for file in (run / "starts").iterdir():
        file.write_text(file.read_text().replace("max_seconds: 0.7", "max_seconds: 1" + "0" * 400))
    found = audit(str(run))
    assert "samples never came" in found.faults[0]


def test_another_dataset_from_the_middle_of_an_epoch_on(run: Path) -> None:
    lines = [line for line in lines_of(run) if line["consumed_samples"] <= 8]
    at = lines[-1]["consumed_samples"]
    other = {"consumed_samples": at, "basis": {"dataset": "other", "num_samples": at + 4}}
    write(log_of(run), [*lines, other, {"consumed_samples": at + 4, "epoch": 0, "samples": [0, 1, 2, 3]}])
    found = audit(str(run))
    assert [fault for fault in found.faults if "the logs" not in fault and "checkpoint" not in fault] == []
    assert (found.epochs[-1].dataset, found.epochs[-1].came, found.epochs[-1].elsewhere) == ("other", 4, at)


def test_lines_lost_before_a_start_are_not_explained_by_it(data: Path, tmp_path: Path) -> None:
    flags = [*RUN, "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*flags, "--max-sub-epochs", "1"]) == 0
    log, last = log_of(tmp_path / "run"), lines_of(tmp_path / "run")[-1]["consumed_samples"]
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(line for line in lines if json.loads(line)["consumed_samples"] < last))
    assert main(flags) == 0
    found = audit(str(tmp_path / "run"))
    assert not found.stretches
    assert any("where the count goes by" in fault for fault in found.faults)
