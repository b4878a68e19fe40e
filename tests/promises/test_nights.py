"""A run that is trained in slots, night by night, is the run in one piece: rates, best checkpoints, averages, bits."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from shardpipe.pack import PackOptions, pack
from shardpipe.train.checkpoints.marker import marker_of, parse_marker
from shardpipe.train.cli import main
from tests.speech import pack_speech, write_list
from tests.training import FLAGS, delivered, events, finish, markers, one_thread, outcome

SAMPLES = 28


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("train"), SAMPLES, shard_samples=8, seconds=(0.3, 0.6))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: pack_speech(tmp_path_factory.mktemp(name), 4, seed=seed, seconds=(0.3, 0.6), shard_samples=1)
        for seed, name in enumerate(("dev", "test"), 1)
    }


def named(sets: dict[str, Path]) -> str:
    return ",".join(f"{name}={place}" for name, place in sets.items())


def train(out: Path, *flags: str) -> None:
    assert main([*FLAGS, *flags, "--out", str(out)]) == 0


def assert_exactly_once(out: Path, epochs: int) -> None:
    assert delivered(out) == {epoch: Counter(f"utt{i:05d}" for i in range(SAMPLES)) for epoch in range(epochs)}


def in_slots(out: Path, *flags: str) -> int:
    """A step a slot, until all is done; how many slots that took."""
    for slot in range(1, 200):
        train(out, *flags, "--max-minutes", "0.000001")
        if events(out, "end"):
            return slot
    raise AssertionError("the slots come to no end")


SCHEDULES = {
    "plateau": [
        "--schedule",
        "plateau",
        "--plateau-patience",
        "1",
        "--plateau-factor",
        "0.3",
        "--best-by",
        "test/loss",
    ],
    "restarts": ["--schedule", "cosine", "--cycle", "1sub-epoch", "--cycle-growth", "2", "--warmup", "1sub-epoch"],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_many_slots_are_the_run_in_one_piece(data: Path, sets: dict[str, Path], tmp_path: Path, schedule: str) -> None:
    # 28 samples by at most 10 are three parts of 9 1/3, which end within batches of 4. A rate that is too high, so that
    # evaluations are not always better.
    flags = ["--data", str(data), "--valid", named(sets), "--epochs", "2", "--sub-epoch-samples", "10"]
    flags += ["--keep", "1", "--keep-best", "2", "--keep-every", "2sub-epochs", "--learning-rate", "0.05"]
    flags += SCHEDULES[schedule]
    whole, slots = tmp_path / "whole", tmp_path / "slots"
    train(whole, *flags)
    assert in_slots(slots, *flags) == len(events(whole, "step")) + 1 > 10, "and one for the last evaluation"
    assert outcome(slots) == outcome(whole)
    assert markers(slots) == markers(whole)
    assert_exactly_once(slots, 2)
    rates = [step["lr"] for step in events(whole, "step")]
    if schedule == "plateau":
        assert rates[-1] < 0.05 * 0.5, "there is a plateau in it"
    else:
        assert max(rates[5:]) == pytest.approx(0.05, rel=0.2)
        assert min(rates) < 0.001
        ends = [event["consumed_samples"] for event in events(whole, "valid") if event["set"] == "dev"]
        lowest = [step["lr"] for step in events(whole, "step") if step["consumed_samples"] in (ends[0], ends[2])]
        assert lowest == [pytest.approx(0.0005)] * 2, "cycles of one and of two sub-epochs end with these"
    for choice in (["--best", "2"], ["--sub-epochs", "1"], ["--best", "1", "--by", "dev/cer"]):
        files = [run / "average.safetensors" for run in (whole, slots)]
        for file in files:
            assert main(["average", str(file.parent), *choice]) == 0
        assert files[0].read_bytes() == files[1].read_bytes()


def test_an_average_of_sub_epochs_is_of_the_last_ones_or_of_none(
    data: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(data), "--epochs", "1", "--sub-epochs", "3", "--save-every", "1steps", "--keep", "2"]
    train(tmp_path / "few", *flags)
    assert main(["average", str(tmp_path / "few"), "--sub-epochs", "2"]) == 2
    said = capsys.readouterr().err
    assert (
        "sub_epochs is 2, but the checkpoint at 20, where one of them ended, is not there. Keep the next ones" in said
    )
    train(tmp_path / "all", *flags, "--keep-every", "1sub-epoch")
    assert main(["average", str(tmp_path / "all"), "--sub-epochs", "3"]) == 0
    averaged = yaml.safe_load((tmp_path / "all" / "average.config.yaml").read_text())["checkpoints"]
    assert averaged == [12, 20, 28]
    assert main(["average", str(tmp_path / "all"), "--sub-epochs", "4"]) == 2
    assert "the run tells of the ends of 3. Ask for fewer" in capsys.readouterr().err


def test_slots_of_parts_end_evaluated_and_their_last_line_goes_on(
    data: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"
    flags = ["--data", str(data), "--valid", named(sets), "--epochs", "2", "--sub-epochs", "2"]
    train(out, *flags, "--max-sub-epochs", "3", "--keep", "9")
    said = capsys.readouterr().err.splitlines()[-1]
    assert [event["consumed_samples"] for event in events(out, "stop")] == [44]
    assert events(out)[-1]["event"] == "stop"
    assert len(events(out, "valid")) == 3 * len(sets)
    assert [marker["progress"]["evaluated"] for marker in markers(out).values()] == [True] * 3
    assert main(shlex.split(said.partition("and so does: shardpipe-train ")[2])) == 0
    train(tmp_path / "whole", *flags, "--keep", "9")
    assert outcome(out) == outcome(tmp_path / "whole")
    assert "done: 56 samples" in capsys.readouterr().err


def test_more_parts_than_are_left_end_when_the_run_does(data: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", "--data", str(data), "--epochs", "1", "--max-sub-epochs", "7")
    assert [event["event"] for event in events(tmp_path / "run")][-2:] == ["checkpoint", "end"]


def test_without_a_validation_set_parts_are_counted_all_the_same(data: Path, tmp_path: Path) -> None:
    flags = ["--data", str(data), "--epochs", "2", "--sub-epochs", "4", "--keep-every", "1sub-epoch", "--keep", "1"]
    train(tmp_path / "whole", *flags)
    assert in_slots(tmp_path / "slots", *flags) == len(events(tmp_path / "whole", "step"))
    assert outcome(tmp_path / "slots") == outcome(tmp_path / "whole")
    found = markers(tmp_path / "whole")
    assert markers(tmp_path / "slots") == found
    assert [marker["progress"]["sub_epochs"] for _, marker in sorted(found.items())] == [*range(1, 9)]


def test_other_parts_in_mid_run_lose_nothing_and_the_schedule_goes_on(
    data: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(data), "--valid", named(sets), "--epochs", "3", "--warmup", "2sub-epochs", "--keep", "99"]
    out = tmp_path / "run"
    train(out, *flags, "--sub-epochs", "2", "--max-sub-epochs", "3")
    capsys.readouterr()
    train(out, *flags, "--sub-epochs", "5", "--max-sub-epochs", "2")
    assert "changed from sample 44 on: sub_epochs from 2 to 5" in capsys.readouterr().err
    train(out, *flags, "--sub-epoch-samples", "1")
    assert_exactly_once(out, 3)
    changed = events(out, "changed")
    assert [(event["consumed_samples"], sorted(event)[2:]) for event in changed] == [
        (44, ["sub_epochs"]),
        (changed[1]["consumed_samples"], ["sub_epoch_samples", "sub_epochs"]),
    ]
    # Three of the first kind, two of the second; of parts of one sample, a step ends four at once.
    counted = [marker["progress"]["sub_epochs"] for _, marker in sorted(markers(out).items())]
    assert counted[:5] == [1, 2, 3, 4, 5]
    assert counted[-1] == 5 + 3 * SAMPLES - changed[1]["consumed_samples"]
    rates = [step["lr"] for step in events(out, "step")]
    warm = next(i for i, rate in enumerate(rates) if rate == max(rates))
    assert all(a >= b for a, b in zip(rates[warm:], rates[warm + 1 :])), "the warm-up is behind it, and stays there"


def test_what_was_changed_on_purpose_is_told_start_by_start(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--data", str(data), "--epochs", "1", "--save-every", "2steps", "--keep", "99"]
    train(out, *flags, "--max-sub-epochs", "1", "--resume", "never")
    train(out, *flags, "--learning-rate", "5e-4", "--resume", str(out / "checkpoints" / f"{8:012d}"))
    assert yaml.safe_load((out / "config.yaml").read_text())["resume"] == "auto", "by which it goes on"
    train(out, *flags, "--epochs", "2", "--batch-size", "2", "--schedule", "constant", "--learning-rate", "5e-4")
    starts = {path.name: yaml.safe_load(path.read_text()) for path in sorted((out / "starts").iterdir())}
    assert list(starts) == [f"{count:012d}.yaml" for count in (0, 8, SAMPLES)]
    assert [start["learning_rate"] for start in starts.values()] == [1e-3, 5e-4, 5e-4]
    assert starts[f"{0:012d}.yaml"]["resume"] == "never"
    assert [{k: v for k, v in event.items() if k != "event"} for event in events(out, "changed")] == [
        {"consumed_samples": 8, "learning_rate": [1e-3, 5e-4]},
        {"consumed_samples": SAMPLES, "epochs": [1, 2], "batch_size": [4, 2], "schedule": ["cosine", "constant"]},
    ]
    # Gone back to where it was changed first, the later starts are no longer its history.
    train(out, *flags, "--resume", str(out / "checkpoints" / f"{8:012d}"))
    assert sorted(path.name for path in (out / "starts").iterdir()) == [f"{count:012d}.yaml" for count in (0, 8)]
    assert [{k: v for k, v in event.items() if k != "event"} for event in events(out, "changed")] == [
        {"consumed_samples": 8, "learning_rate": [1e-3, 5e-4]},
        {"consumed_samples": 8, "learning_rate": [5e-4, 1e-3]},
    ]


@pytest.mark.parametrize(
    "content",
    [
        "batch_size: 4",
        "clip: .nan\ndata: [1]\nseed: 2020-01-01\nvalid: !!set {a}",
        "a: &a [*a]",
        'units: "\\ud800"',
        "\0",
        "",
    ],
)
def test_whatever_the_settings_of_a_start_hold(
    data: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(out, "--data", str(data), "--epochs", "1", "--sub-epochs", "2", "--max-sub-epochs", "1")
    start = out / "starts" / f"{0:012d}.yaml"
    for file in (start, out / "config.yaml"):
        file.write_text(content)
    train(out, "--data", str(data), "--epochs", "1", "--sub-epochs", "2", "--learning-rate", "1e-4")
    assert "NaN" not in (out / "metrics.jsonl").read_text()
    assert all(
        set(event) <= {"event", "consumed_samples", *yaml.safe_load((out / "config.yaml").read_text())}
        for event in events(out, "changed")
    )


def test_a_run_that_began_at_a_count_begins_there_again_until_it_has_a_checkpoint(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "first", "--data", str(data), "--epochs", "1")
    out = tmp_path / "second"
    copy = pack_speech(tmp_path / "copy", SAMPLES, shard_samples=8, seconds=(0.3, 0.6))
    kept = {shard: shard.read_bytes() for shard in copy.glob("*.tar")}
    for shard in kept:
        shard.unlink()
    flags = ["--data", str(copy), "--epochs", "2", "--init-from", str(tmp_path / "first"), "--out", str(out)]
    assert main([*FLAGS, *flags, "--resume-samples", "16"]) == 1
    for shard, content in kept.items():
        shard.write_bytes(content)
    assert main(["--config", str(out / "config.yaml"), "--max-sub-epochs", "1"]) == 0
    assert events(out)[0]["consumed_samples"] == 16
    assert main(["--config", str(out / "config.yaml"), "--max-sub-epochs", "9"]) == 0
    assert [event["consumed_samples"] for event in events(out, "start", "resume")] == [16, 16, 28]


def test_what_another_run_counted_is_not_this_ones(
    data: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(data), "--epochs", "1", "--sub-epochs", "3", "--keep", "9", "--valid", named(sets)]
    plateau = ["--schedule", "plateau", "--plateau-patience", "1", "--warmup", "0steps", "--learning-rate", "0.05"]
    plateau += ["--best-by", "cer"]  # which is the same all the time
    train(tmp_path / "first", *flags, *plateau)
    lowered = [marker["progress"]["plateau"]["factor"] for _, marker in sorted(markers(tmp_path / "first").items())]
    assert lowered[-1] < 1
    begins = ["--init-from", str(tmp_path / "first"), "--resume-samples", "12"]
    train(tmp_path / "second", *flags, *plateau, *begins)
    assert events(tmp_path / "second", "step")[0]["lr"] == 0.05
    assert main(["average", str(tmp_path / "second"), "--sub-epochs", "3"]) == 2
    assert "the run tells of the ends of 2" in capsys.readouterr().err
    # One that goes on from another's checkpoint has that one's past, of which its own checkpoints are none.
    place = str(tmp_path / "first" / "checkpoints" / f"{20:012d}")
    train(tmp_path / "second", *flags, *plateau, "--resume", place)
    assert "put aside the checkpoints 28" in capsys.readouterr().err
    train(tmp_path / "third", *flags, "--max-sub-epochs", "1", "--learning-rate", "1e-4")
    train(tmp_path / "third", *flags, *plateau, "--resume", place)
    assert sorted(markers(tmp_path / "third")) == [f"{count:012d}" for count in (20, 28)]
    assert "put aside the checkpoints 12" in capsys.readouterr().err


def test_the_settings_of_a_run_mean_it_from_any_folder(
    data: Path, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, place in {"train": data, **sets}.items():
        (tmp_path / name).symlink_to(place)
    flags = ["--data", "train", "--valid", "dev=dev,test=test", "--epochs", "2"]
    train(Path("run"), *flags, "--max-sub-epochs", "1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--config", "moved/config.yaml"]) == 0
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["moved"]
    assert [event["consumed_samples"] for event in events(tmp_path / "elsewhere" / "moved", "resume")] == [SAMPLES]
    assert events(tmp_path / "elsewhere" / "moved", "changed") == []
    assert main(["--config", "moved/config.yaml", "--out", "another", "--epochs", "1"]) == 0
    assert len(events(Path("another"), "start")) == 1


def test_sub_epochs_that_were_counted_are_not_counted_anew(data: Path, tmp_path: Path) -> None:
    flags = ["--data", str(data), "--epochs", "2", "--save-every", "1steps"]
    train(tmp_path / "run", *flags, "--max-minutes", "0.00001")
    train(tmp_path / "run", *flags, "--sub-epochs", "7", "--max-sub-epochs", "1")
    (last,) = [marker for _, marker in sorted(markers(tmp_path / "run").items())][-1:]
    assert last["progress"]["sub_epochs"] == 1, "none had ended when there were seven of them"


def test_where_they_were_not_counted_yet_they_are_those_of_the_count(data: Path, tmp_path: Path) -> None:
    flags = ["--data", str(data), "--epochs", "2", "--sub-epochs", "2"]
    train(tmp_path / "run", *flags, "--max-sub-epochs", "3")
    (file,) = sorted((tmp_path / "run").glob("checkpoints/0*/checkpoint.json"))[-1:]
    found = parse_marker(file.read_bytes(), "")
    before = msgspec.structs.replace(found.progress, sub_epochs=None, sub_epoch_ends=())
    file.write_bytes(marker_of(replace(found, progress=before)))
    train(tmp_path / "run", *flags)
    assert markers(tmp_path / "run")[f"{2 * SAMPLES:012d}"]["progress"]["sub_epochs"] == 4


def test_what_was_best_stays_until_another_figure_has_found_its_own(
    data: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--data", str(data), "--epochs", "2", "--sub-epochs", "3", "--keep", "1", "--keep-best", "2"]
    train(out, *flags, "--valid", str(sets["dev"]), "--max-sub-epochs", "3")
    best = set(markers(out))
    assert len(best) >= 2
    train(out, *flags, "--valid", named(sets), "--max-minutes", "0.00001")
    assert best <= set(markers(out))
    capsys.readouterr()
    assert main(["checkpoints", str(out)]) == 0
    said = capsys.readouterr().out
    assert "evaluated before there was dev/loss" in said
    train(out, *flags, "--valid", named(sets))
    assert all("dev/loss" in marker["valid"] for marker in markers(out).values())


def damage(dataset: Path) -> None:
    """Flips a bit in the audio of every shard but the first."""
    for shard in sorted(dataset.glob("*.tar"))[1:]:
        content = bytearray(shard.read_bytes())
        at = next(i for i in range(len(content) // 2, len(content)) if content[i])
        content[at] ^= 1
        shard.write_bytes(content)


@pytest.fixture
def broken(sets: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    own = {"dev": pack_speech(tmp_path / "dev", 4, seed=1, seconds=(0.3, 0.6), shard_samples=1), "test": sets["test"]}
    damage(own["dev"])
    return own


def test_a_set_that_fails_does_not_end_a_training_that_decides_nothing_by_it(
    data: Path, broken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(out, "--data", str(data), "--valid", named(broken), "--epochs", "2")
    assert [event["set"] for event in events(out, "valid")] == ["test", "test"]
    failed = events(out, "valid_failed")
    assert [event["set"] for event in failed] == ["dev", "dev"]
    assert all("shard-" in event["reason"] for event in failed)
    assert events(out, "end")[0]["failed_evaluations"] == 2
    said = capsys.readouterr().err
    assert said.count("dev cannot be evaluated, and the training goes on: ") == 2
    assert "failed evaluations: 2" in said
    assert all(list(marker["valid"]) == ["test/loss", "test/wer", "test/cer"] for marker in markers(out).values())


def test_a_set_whose_index_is_damaged_fails_when_it_is_evaluated(
    data: Path, broken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (part,) = broken["dev"].glob("index/part-*")
    content = bytearray(part.read_bytes())
    content[20:60] = bytes(40)
    part.write_bytes(content)
    train(tmp_path / "run", "--data", str(data), "--valid", named(broken), "--epochs", "1")
    assert [event["set"] for event in events(tmp_path / "run", "valid_failed")] == ["dev"]
    assert "warning" not in capsys.readouterr().err


def test_a_failure_is_told_once_however_often_its_evaluation_is_done(
    data: Path, broken: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    flags = [*FLAGS, "--data", str(data), "--valid", named(broken), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr("shardpipe.train.run.saves.Saves.mark_evaluated", lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                main([*flags, "--epochs", "1"])
    assert main([*flags, "--epochs", "1"]) == 0
    assert len(events(out, "valid_failed")) == len(events(out, "valid")) == 1
    # The first set's figures are the run's, though it has none here.
    assert main(["export", str(out), "--best", "cer", "-o", str(tmp_path / "model")]) == 2
    assert main(["export", str(out), "--best", "test/cer", "-o", str(tmp_path / "model")]) == 0


@pytest.mark.parametrize("why", [["--keep-best", "1"], ["--schedule", "plateau"]])
def test_the_set_that_decides_must_not_fail_and_is_evaluated_at_the_next_start(
    data: Path, broken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], why: list[str]
) -> None:
    out = tmp_path / "run"
    flags = [*FLAGS, "--data", str(data), "--valid", named(broken), "--epochs", "2", "--out", str(out), *why]
    assert main(flags) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("shardpipe-train: ")
    assert "the validation set dev, by which the run decides, cannot be evaluated: " in said
    damage(broken["dev"])  # back to what it was
    assert main(flags) == 0
    train(tmp_path / "whole", *flags[len(FLAGS) :][:6], *why)
    assert outcome(out) == outcome(tmp_path / "whole")


def test_a_set_that_fails_in_one_of_two_processes_is_left_by_both(
    data: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    broken = pack_speech(tmp_path / "dev", 4, seed=1, seconds=(0.3, 0.6), shard_samples=1)
    shard = sorted(broken.glob("*.tar"))[-1]
    shard.write_bytes(shard.read_bytes()[:-512] + b"longer" * 100)
    flags = [*FLAGS, "--data", str(data), "--epochs", "1", "--batch-size", "1", "--engine", "fsdp"]
    said = finish(tmp_path / "run", [*flags, "--valid", f"dev={broken},test={sets['test']}"], processes=2)
    assert said.count("dev cannot be evaluated, and the training goes on: ") == 1
    assert [event["set"] for event in events(tmp_path / "run", "valid")] == ["test"]
    assert "done: 28 samples" in said


def of_texts(folder: Path, text: str, n: int = 4) -> Path:
    """A dataset of short audio, all with one text."""
    path = write_list(folder, n, seconds=(0.3, 0.6))
    lines = [json.loads(line) | {"txt": text} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pack(path, folder / "packed", options=PackOptions(relative=True))
    return folder / "packed"


def test_texts_without_the_units_are_doubted(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upper = of_texts(tmp_path / "upper", "STOP now")
    train(
        tmp_path / "run", "--data", str(data), "--valid", f"upper={upper}", "--epochs", "1", "--max-minutes", "0.00001"
    )
    said = capsys.readouterr().err
    (line,) = re.findall(r"warning: .*", said)
    assert "50.0% of the characters in the first 4 texts of upper are not among the" in line
    units = tmp_path / "units.txt"
    units.write_text("<blank> 0\n<unk> 1\na 2\nb 3\n")
    train(tmp_path / "other", "--data", str(data), "--units", str(units), "--epochs", "1", "--max-minutes", "0.00001")
    assert f"texts of {data} are not among the 4 units" in capsys.readouterr().err


def test_utterances_that_teach_nothing_are_doubted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = of_texts(tmp_path / "long", "many more characters than there are frames for them", 8)
    train(tmp_path / "run", "--data", str(long), "--epochs", "1", "--sub-epochs", "2")
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert "warning: sample 4  4 of 4 utterances so far teach nothing, for they have fewer frames" in said


def test_a_model_of_another_rate_is_refused_by_name(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", "--data", str(data), "--epochs", "1", "--max-sub-epochs", "1")
    flags: list[Any] = [*FLAGS, "--data", str(data), "--sample-rate", "8000", "--init-from", str(tmp_path / "run")]
    assert main([*flags, "--out", str(tmp_path / "other")]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "sample_rate was 16000 when saved and is 8000 now" in said
    assert "with --sample-rate" in said
