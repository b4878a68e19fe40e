"""What `shardpipe-train` does with its flags, with what it finds in the run's folder, and with faults."""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import shutil
import sys
from concurrent.futures import wait
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shardpipe.errors import StoreError
from shardpipe.pack import pack
from shardpipe.train.amount import Amount, Done
from shardpipe.train.checkpoints import Saver
from shardpipe.train.checkpoints.marker import marker_of, parse_marker
from shardpipe.train.checkpoints.storage import storage_at
from shardpipe.train.cli import main
from shardpipe.train.config import TrainConfig
from shardpipe.train.schedule import Schedule
from tests.speech import make_bytes, pack_speech, write_list
from tests.training import FLAGS, events, markers, one_thread, outcome

SAMPLES = 40
STEPS = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("train"), SAMPLES, shard_samples=8, seconds=(0.3, 0.8))


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, with checkpoints after 8, 16, 24, 32 and 40 samples."""
    out = tmp_path_factory.mktemp("done") / "run"
    run = [*FLAGS, "--data", str(data), "--out", str(out), "--epochs", "1", "--save-every", "2steps", "--keep", "9"]
    with one_thread():
        assert main(run) == 0
    return out


@pytest.fixture
def run(data: Path, done: Path, tmp_path: Path) -> Path:
    """A copy of that run, to do something to."""
    return Path(shutil.copytree(done, tmp_path / "run"))


def again(data: Path, out: Path, *more: str) -> int:
    """The same command, perhaps with other flags."""
    flags = [*FLAGS, "--data", str(data), "--out", str(out), "--epochs", "1", "--save-every", "2steps", "--keep", "9"]
    return main([*flags, *more])


def counts(out: Path) -> list[int]:
    return sorted(int(name) for name in markers(out))


def snapshot(out: Path) -> dict[str, bytes]:
    """All but what says how the latest start has ended, be it that it was refused."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name != "exit.json"]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def test_a_runs_folder(done: Path, data: Path) -> None:
    assert counts(done) == [8, 16, 24, 32, 40]
    assert yaml.safe_load((done / "config.yaml").read_text())["batch_size"] == 4
    assert (done / "units.txt").read_text().startswith("<blank> 0\n<unk> 1\n")
    assert [event["event"] for event in events(done)].count("step") == STEPS
    assert not list(done.glob("checkpoints/.tmp*"))
    board = EventAccumulator(str(done / "tensorboard")).Reload()
    drawn = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert drawn == [(s["consumed_samples"], pytest.approx(s["loss"])) for s in events(done, "step")]


def test_a_checkpoint_knows_no_machine(done: Path) -> None:
    for folder in (done / "checkpoints").iterdir():
        for file in folder.iterdir():
            content = file.read_bytes()
            assert str(done).encode() not in content
            assert b".tmp-" not in content
            assert b"world" not in content


def test_the_rates_and_the_metrics_are_what_the_schedule_says_also_after_a_resume(run: Path, data: Path) -> None:
    assert again(data, run, "--resume", str(run / "checkpoints" / "000000000024")) == 0
    schedule = Schedule(peak=1e-3, warmup=Amount(count=10, unit="steps"), decay="cosine", total_samples=SAMPLES)
    steps = events(run, "step")
    done = [Done(steps=i, samples=4 * i, sub_epochs=0) for i in range(1, STEPS + 1)]
    assert [step["lr"] for step in steps] == [schedule.at(each) for each in done]
    assert [step["progress"] for step in steps] == [4 * i / SAMPLES for i in range(1, STEPS + 1)]
    for step in steps:
        assert 0 <= step["data_wait"] <= 1
        assert step["utt_per_s"] > 0
        assert step["audio_s_per_s"] > 0
        assert step["grad_norm"] > 0
        assert math.isfinite(step["eta"])


def test_done_is_done(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = outcome(run), markers(run)
    assert again(data, run) == 0
    assert "done: 40 samples in 10 steps" in capsys.readouterr().err
    assert (outcome(run), markers(run)) == before


def test_what_is_no_longer_to_be_kept_goes_as_a_run_goes_on(run: Path, data: Path) -> None:
    """As it would have gone, had the run not been killed between a save and that."""
    assert again(data, run, "--keep", "1", "--keep-every", "16samples") == 0
    assert counts(run) == [16, 32, 40]


def test_one_that_could_not_be_written_is_made_up_for_by_the_next_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = type(storage_at("folder"))
    real, asked = storage.begin, []

    def begin(self: Any, name: str, size: int) -> None:
        asked.append(name)
        if len(asked) == 1:
            raise StoreError("is away", url="there", fix="", transient=True)
        real(self, name, size)

    def has_failed(saver: Saver) -> bool:
        """At once, however slow the thread that writes is beside the steps of so small a model."""
        wait([saver._writing] if saver._writing else [])
        return bool(real_has_failed.__get__(saver))

    real_has_failed = Saver.has_failed
    monkeypatch.setattr(storage, "begin", begin)
    monkeypatch.setattr(Saver, "has_failed", property(has_failed))
    assert again(data, tmp_path / "run", "--save-every", "1000steps", "--sub-epochs", "2") == 0
    (failed,) = events(tmp_path / "run", "checkpoint_failed")
    assert failed["reason"] == "there: is away"
    half = failed["consumed_samples"]
    assert half < min(counts(tmp_path / "run")) < SAMPLES
    assert "a checkpoint was not written, and another one is begun: there: is away" in capsys.readouterr().err


def test_more_epochs_go_on_from_the_end(run: Path, data: Path) -> None:
    assert again(data, run, "--epochs", "2", "--keep", "3") == 0
    assert counts(run) == [64, 72, 80]
    assert [step["step"] for step in events(run, "step")] == list(range(1, 2 * STEPS + 1))
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(4, 81, 4))


def test_a_torn_newest_checkpoint_is_passed_over_with_a_line(
    run: Path, done: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoints" / "000000000040"
    torn = newest / "rank0-0.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    flipped = run / "checkpoints" / "000000000032" / "rank0-0.safetensors"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    assert again(data, run) == 0
    said = capsys.readouterr().err
    assert "passed over" in said
    assert "rank0-0.safetensors has 5" in said
    assert "going on at sample 24 of 40" in said
    assert outcome(run) == outcome(done)
    assert markers(run) == markers(done)

    torn.unlink()
    for broken in ('{"format": 1, ', '{"format": 1}', "[]"):
        (newest / "checkpoint.json").write_text(broken)
        assert again(data, run, "--resume", str(newest)) == 1
        assert "checkpoint.json cannot be read" in capsys.readouterr().err
    (newest / "checkpoint.json").write_text('{"format": 3}')
    assert again(data, run, "--resume", str(newest)) == 1
    assert "has format 3, this version reads 1 and 2" in capsys.readouterr().err
    for folder in (run / "checkpoints").iterdir():
        (folder / "checkpoint.json").write_text("")
    assert again(data, run) == 1
    assert "none of the checkpoints is whole" in capsys.readouterr().err


def test_a_half_written_checkpoint_is_never_chosen(run: Path, done: Path, data: Path) -> None:
    folder = run / "checkpoints"
    (folder / "000000000040").rename(folder / ".tmp-000000000040")
    (folder / "000000000032" / "checkpoint.json").unlink()
    assert again(data, run) == 0
    assert [event["consumed_samples"] for event in events(run, "resume")] == [24]
    assert outcome(run) == outcome(done)
    assert markers(run) == markers(done)
    assert not list(folder.glob(".tmp*"))


def test_going_back_to_a_count_puts_later_checkpoints_aside(
    run: Path, done: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(data, run, "--resume-samples", "16", "--epochs", "1") == 0
    assert "put aside the checkpoints 24, 32, 40" in capsys.readouterr().err
    assert sorted(p.name for p in (run / "checkpoints" / ".aside").iterdir()) == [f"{n:012}" for n in (24, 32, 40)]
    assert outcome(run) == outcome(done)
    assert markers(run) == markers(done)


def test_going_back_to_the_beginning_puts_all_aside(
    run: Path, done: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(data, run, "--resume-samples", "0", "--save-every", "40samples") == 0
    assert "put aside the checkpoints 8, 16, 24, 32, 40" in capsys.readouterr().err
    assert counts(run) == [40]
    assert outcome(run) == outcome(done)


def test_a_count_without_a_checkpoint_lists_those_there_are(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(run)
    assert again(data, run, "--resume-samples", "17") == 1
    said = capsys.readouterr().err
    assert "no checkpoint at sample 17; there are checkpoints at 8, 16, 24, 32, 40. " in said
    assert snapshot(run) == before
    assert again(data, tmp_path / "new", "--resume-samples", "17") == 1
    assert "there is no checkpoint. Give the model and the optimizer with --init-from." in capsys.readouterr().err


def test_init_from_gives_the_model_to_a_count_that_has_no_checkpoint(done: Path, data: Path, tmp_path: Path) -> None:
    source = str(done / "checkpoints" / "000000000016")
    at_17 = ["--resume-samples", "17", "--init-from", source]
    assert again(data, tmp_path / "at 17", *at_17) == 0
    steps = events(tmp_path / "at 17", "step")
    assert steps[0]["consumed_samples"] < 22
    assert steps[0]["step"] == 5
    assert steps[-1]["consumed_samples"] == SAMPLES
    # The same command, repeated after a stop, goes on instead of starting over.
    assert again(data, tmp_path / "at 17", *at_17) == 0
    assert [e["consumed_samples"] for e in events(tmp_path / "at 17", "start", "resume")] == [17, SAMPLES]
    assert again(data, tmp_path / "tuned", "--init-from", source) == 0
    tuned = events(tmp_path / "tuned", "step")
    assert tuned[0]["step"] == 1
    assert tuned[0]["loss"] < events(done, "step")[0]["loss"]


def test_a_run_from_another_folder_goes_on_in_a_new_one(done: Path, data: Path, tmp_path: Path) -> None:
    assert again(data, tmp_path / "fork", "--resume", str(done)) == 0
    assert events(tmp_path / "fork", "resume")[0]["consumed_samples"] == SAMPLES


def test_never_does_not_touch_a_used_folder(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(run)
    assert again(data, run, "--resume", "never") == 2
    assert "holds a run already. Choose another --out, or go on with --resume auto." in capsys.readouterr().err
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--seed", "4"], "seed"),
        (["--window", "4"], "window"),
        (["--lanes", "1"], "lanes"),
        (["--model", "small"], "model"),
        (["--units", "UNITS"], "units"),
        (["--data", "OTHER"], "fingerprint"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_fields_name(
    run: Path, data: Path, tmp_path: Path, flags: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    units = tmp_path / "units.txt"
    units.write_text("<blank> 0\n<unk> 1\na 2\n")
    values = {"UNITS": str(units)}
    if "OTHER" in flags:
        values["OTHER"] = str(pack_speech(tmp_path / "other", SAMPLES, seed=9, seconds=(0.3, 0.8)))
    before = snapshot(run)
    assert again(data, run, *(values.get(flag, flag) for flag in flags)) == 1
    said = capsys.readouterr().err
    assert said.startswith("shardpipe-train: ")
    assert f"{field} was " in said
    assert "Traceback" not in said
    assert snapshot(run) == before


def test_all_that_differs_is_said_at_once(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(data, run, "--seed", "4", "--window", "4", "--model", "small") == 1
    said = capsys.readouterr().err
    assert "seed was 3 when saved and is 4 now; window was 8 when saved and is 4 now; model was 'tiny'" in said
    assert f"{run}/checkpoints/000000000040: " in said
    assert "Give the same --model, or a new --out." in said


def test_a_loaders_state_that_is_none_names_its_checkpoint(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "checkpoints" / "000000000040" / "checkpoint.json"
    found = parse_marker(file.read_bytes(), "")
    file.write_bytes(marker_of(replace(found, loader={**found.loader, "plan": {"window": "x"}})))
    assert again(data, run) == 1
    said = capsys.readouterr().err
    assert f"{run}/checkpoints/000000000040: is damaged: state of its loader" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("content", ["a: !!timestamp foo", "a: !!int ''", "[" * 5000, "keep: 1.5", "best_by: [x]", "3"])
def test_whatever_config_yaml_holds(run: Path, data: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text(content)
    assert main(["checkpoints", str(run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    assert main(["checkpoints", str(run)]) == 0


def test_another_batch_size_is_no_other_run(run: Path, data: Path) -> None:
    assert again(data, run, "--batch-size", "2", "--resume-samples", "24") == 0
    assert events(run, "step")[-1]["consumed_samples"] == SAMPLES
    assert len(events(run, "step")) > STEPS


def test_two_runs_in_one_folder(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert again(data, run) == 1
    assert "another process is training there" in capsys.readouterr().err
    assert again(data, run) == 0


def test_a_disk_that_is_full_leaves_the_last_checkpoint(
    done: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        assert again(data, tmp_path / "run") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert "File too large" in said
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert again(data, tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(done)


def test_no_finite_gradient_stops_the_run_in_the_end(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["--learning-rate", "1e30", "--warmup", "0steps", "--epochs", "3"]
    assert again(data, tmp_path / "run", *wild) == 1
    assert "the gradient was not finite in 20 steps in a row" in capsys.readouterr().err
    steps = events(tmp_path / "run", "step")
    assert steps[-1]["grad_norm"] is None
    kept = markers(tmp_path / "run")
    assert max(progress["progress"]["skipped_steps"] for progress in kept.values()) > 10


def test_utterances_that_teach_nothing_are_counted_and_named(data: Path, tmp_path: Path) -> None:
    units = tmp_path / "units.txt"
    units.write_text("<blank> 0\n<unk> 1\n\u2581 2\ne 3\n")
    assert again(data, tmp_path / "run", "--units", str(units), "--max-seconds", "0.6") == 0
    (end,) = events(tmp_path / "run", "end")
    assert end["unknown_units"] > 0
    assert end["excluded"] > 0
    assert end["left_out"] == len(events(tmp_path / "run", "left_out"))
    for event in events(tmp_path / "run", "left_out"):
        assert event["frames"] < event["needed"]


def test_a_damaged_sample_ends_the_run_or_is_skipped_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pack_speech(tmp_path / "src", 12, codecs=("wav",), seconds=(0.3, 0.5))
    shard = data / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 0xFF
    shard.write_bytes(content)
    assert again(data, tmp_path / "strict") == 1
    assert "utt00000" in capsys.readouterr().err
    assert again(data, tmp_path / "lenient", "--on-error", "skip") == 0
    (skipped,) = events(tmp_path / "lenient", "unreadable")
    assert skipped["key"] == "utt00000"
    assert events(tmp_path / "lenient", "end")[0]["unreadable"] == 1


@pytest.mark.parametrize("units", [False, True])
def test_texts_without_a_character_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], units: bool
) -> None:
    data_list = write_list(tmp_path / "speech", 6)
    lines = [json.loads(line) | {"txt": " "} for line in data_list.read_text().splitlines()]
    data_list.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pack(data_list, tmp_path / "empty")
    (tmp_path / "units.txt").write_text("<blank> 0\n<unk> 1\na 2\n")
    more = ["--units", str(tmp_path / "units.txt")] if units else []
    assert again(tmp_path / "empty", tmp_path / "run", *more) == 2
    assert f"data is '{tmp_path}/empty', but not one of its texts holds a character" in capsys.readouterr().err


def test_bf16_trains_too(done: Path, data: Path, tmp_path: Path) -> None:
    assert again(data, tmp_path / "run", "--precision", "bf16", "--no-deterministic") == 0
    ours, theirs = (events(out, "step")[0] for out in (tmp_path / "run", done))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
    assert ours["loss"] != theirs["loss"]


def test_validation_data_of_another_rate_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid = pack_speech(tmp_path / "valid", 3, rate=8000)
    assert again(data, tmp_path / "run", "--valid", str(valid)) == 2
    assert "it has 8000 Hz and the training data 16000 Hz" in capsys.readouterr().err


def test_channels_and_rates_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for number in range(8):
        rate, channels = (8000, 16000)[number % 2], 1 + number // 4
        (tmp_path / f"{number}.wav").write_bytes(make_bytes("wav", rate, rate=rate, channels=channels, seed=number))
        lines.append(json.dumps({"key": f"utt{number}", "wav": f"{number}.wav", "txt": "ab c"}) + "\n")
    (tmp_path / "data.list").write_text("".join(lines))
    pack(tmp_path / "data.list", tmp_path / "data")
    run = [*FLAGS, "--data", str(tmp_path / "data"), "--valid", str(tmp_path / "data"), "--epochs", "1"]
    assert main([*run, "--out", str(tmp_path / "1"), "--channels", "mix"]) == 2
    assert "data is [8000, 16000], but its samples must have one sample rate" in capsys.readouterr().err
    assert main([*run, "--out", str(tmp_path / "2"), "--sample-rate", "8000"]) == 2
    assert "channels is 'error', but 4 of its samples have 2 channels" in capsys.readouterr().err
    for channels in ("mix", "0"):
        out = tmp_path / channels
        assert main([*run, "--out", str(out), "--sample-rate", "8000", "--channels", channels]) == 0
        assert {marker["identity"]["sample_rate"] for marker in markers(out).values()} == {8000}
    other = ["--epochs", "2", "--channels", "mix", "--sample-rate", "16000"]
    assert main([*run, "--out", str(tmp_path / "mix"), *other]) != 0
    assert "sample_rate" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["torchaudio", "tensorboard"])
def test_without_what_training_needs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert main([*FLAGS, "--data", str(data), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert f"{name} cannot be imported" in said
    assert "pip install 'shardpipe[train]'" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_settings_come_from_a_file_and_flags_override_it(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"data": str(data), "model": "tiny", "batch_size": 8, "device": "cpu"}))
    assert main(["--config", str(file), "--out", str(tmp_path / "run"), "--epochs=1", "--batch-size", "10"]) == 0
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["batch_size"] == 10
    assert resolved["model"] == "tiny"
    assert len(events(tmp_path / "run", "step")) == SAMPLES // 10
    assert set(resolved) == {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--data", "nowhere", "--out", "OUT"], 1, "nowhere"),
        (["--data", "DATA", "--out", "OUT", "--epochs", "0"], 2, "epochs is 0, but it must be at least 1"),
        (["--data", "DATA", "--out", "OUT", "--batch-size", "2", "--batch-seconds", "2"], 2, "exactly one"),
        (["--data", "DATA", "--out", "OUT", "--device", "cuda"], 2, "no CUDA device"),
        (["--data", "DATA", "--out", "OUT", "--cache-bytes", "2XB"], 2, "cache_bytes is '2XB'"),
        (["--data", "DATA", "--out", "OUT", "--cache-bytes", "2GB"], 2, "it needs a cache_dir"),
        (["--data", "DATA", "--out", "OUT", "--batch-seconds", "0.2"], 2, "utt000"),
        (["--data", "DATA", "--out", "s3://bucket/run"], 2, "out is 's3://...', but it must be a path of this machine"),
        (["--data", "DATA", "--out", "OUT", "--init-from", "s3://me:word@bucket/x"], 2, "'s3://bucket/x', but it came"),
        (["--data", "DATA", "--out", "OUT", "--keep-best", "2"], 2, "which are the best is not known. Give --valid"),
        (
            ["--data", "DATA", "--out", "OUT", "--keep-every", "10min"],
            2,
            "it must be like 5000samples, 200steps or 2sub-epochs",
        ),
        (["--data", "DATA", "--out", "OUT", "--keep-every", "0samples"], 2, "it must be more than nothing"),
        (["--data", "DATA", "--out", "OUT", "--init-from", "nowhere"], 1, "is no complete checkpoint"),
    ],
)
def test_wrong_settings_and_data_are_one_line(
    data: Path, tmp_path: Path, flags: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    values = {"DATA": str(data), "OUT": str(tmp_path / "run")}
    assert main([values.get(flag, flag) for flag in flags]) == code
    said = capsys.readouterr().err.splitlines()
    assert says in said[-1]
    assert said[-1].startswith("shardpipe-train: ")


@pytest.mark.parametrize("flags", [["--data", "x"], ["--data", "x", "--out", "y", "--lane", "two"], ["--nonsense"]])
def test_a_wrong_command_line_exits_with_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_flags_are_these_and_each_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    # Flags never leave: think twice before this list grows.
    assert [field.name for field in fields(TrainConfig)] == [
        *("data", "out", "valid", "model", "units", "epochs", "batch_size", "batch_seconds", "min_seconds"),
        *("max_seconds", "channels", "sample_rate", "sub_epochs", "sub_epoch_samples", "max_sub_epochs"),
        *("max_minutes", "window", "lanes", "seed", "learning_rate", "warmup", "schedule", "cycle"),
        *("cycle_growth", "plateau_factor", "plateau_patience", "weight_decay", "batches_per_step", "accumulate"),
        *("clip", "spec_augment", "engine", "precision", "activation_checkpointing", "compile", "deterministic"),
        *("device", "threads", "cache_dir", "cache_bytes", "on_error", "save_every", "checkpoints", "keep"),
        *("keep_every", "keep_best", "best_by", "resume", "resume_samples", "init_from", "log_samples", "log_keys"),
        *("hang_minutes", "schemes", "servers", "local", "token_file", "tls_ca", "digests"),
    ]
    for field in fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in said
    assert "--data DATA" in said


def test_a_terminal_gets_a_bar(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert again(data, tmp_path / "run", "--batch-size", "20") == 0
    said = capsys.readouterr().err
    assert "━" in said
    assert "utt/s" in said
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["event"] == "end"
