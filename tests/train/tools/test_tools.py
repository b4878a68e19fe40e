"""What is done with a run's checkpoints: listed, verified, exported, averaged."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from shardpipe.train.cli import main
from shardpipe.train.task import model as task_model
from shardpipe.train.task.model import CTCModel
from tests.places import use_bucket
from tests.s3 import upload
from tests.speech import pack_speech
from tests.training import FLAGS, events, one_thread

PAST = Path(__file__).parents[2] / "past" / "0.1.0"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at 8, 12, 16, 20 and 24 samples; those at 12 and 24 are evaluated."""
    folder = tmp_path_factory.mktemp("tools")
    data = pack_speech(folder / "data", 12, seconds=(0.3, 0.6))
    valid = pack_speech(folder / "valid", 3, seed=1, seconds=(0.3, 0.6))
    flags = [*FLAGS, "--data", str(data), "--valid", str(valid), "--epochs", "2", "--save-every", "1steps"]
    flags += ["--keep", "2", "--keep-best", "1", "--keep-every", "8samples", "--best-by", "loss"]
    with one_thread():
        assert main([*flags, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


def table(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]


def test_the_list(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(done)]) == 0
    head, *rows = table(capsys)
    assert head == ["samples", "epoch", "sub-epoch", "steps", "size", "loss", "wer", "cer", "kept"]
    counts = [int(row[0]) for row in rows]
    assert counts == sorted(int(path.name) for path in (done / "checkpoints").iterdir())
    losses = {event["consumed_samples"]: f"{event['loss']:.4f}" for event in events(done, "valid")}
    assert sorted(losses) == [12, 24]
    best = min(losses, key=lambda count: float(losses[count]))
    assert counts == sorted({8, 16, 22, 24, best})
    for row in rows:
        assert row[5] == losses.get(int(row[0]), "-")
        assert row[4].endswith("MiB")
    found = {int(row[0]): row for row in rows}
    assert found[24][1:4] == ["2", "0", "8"]
    assert found[22][1:4] == ["1", "0", "7"]
    assert found[22][8] == "newest"
    assert found[8][8] == "first from 8 samples on"
    assert "newest, first from 24 samples on" in found[24][8]
    assert "no. 1 by loss" in found[best][8]


def test_all_are_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(run), "--verify"]) == 0
    assert "are as they were written: " in capsys.readouterr().out
    flipped, cut = (run / "checkpoints" / f"{count:012d}" / "rank0-0.safetensors" for count in (8, 24))
    content = bytearray(flipped.read_bytes())
    content[-9] ^= 1
    flipped.write_bytes(content)
    assert main(["checkpoints", str(run)]) == 0, "their sizes are what they were"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert main(["checkpoints", str(run)]) == 1
    said = capsys.readouterr().out
    assert "is damaged: files are missing, or have another size" in said
    assert main(["checkpoints", str(run), "--verify"]) == 1
    said = capsys.readouterr().out
    assert said.count("is damaged: rank0-0.safetensors has ") == 2
    assert "are as they were written" not in said


def weights_at(run: Path, count: int, out: Path) -> dict[str, torch.Tensor]:
    assert main(["export", str(run), "--at", str(count), "-o", str(out)]) == 0
    return load_file(out)


def test_an_exported_model_loads_with_safetensors_alone(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "model.safetensors"
    assert main(["export", str(done), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    settings = yaml.safe_load((out.parent / "model.config.yaml").read_text())
    assert (out.parent / "model.units.txt").read_bytes() == (done / "units.txt").read_bytes()
    assert settings["checkpoints"] == [24]
    assert settings["sample_rate"] == 16000
    assert settings["architecture"]["width"] == task_model.SIZES["tiny"].width
    assert settings["training"]["batch_size"] == 4
    assert str(tmp_path.parent) not in (out.parent / "model.config.yaml").read_text()
    model = CTCModel(settings["model"], settings["units"])
    model.load_state_dict(load_file(out), strict=True)
    features = torch.randn(1, 40, 80)
    assert model.eval()(features, torch.tensor([40]))[0].isfinite().all()
    assert any(not torch.equal(a, b) for a, b in zip(load_file(out).values(), weights_at(done, 8, out).values()))


def test_an_average_of_one_is_that_one(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--best", "loss"]) == 0
    assert main(["average", str(run), "--best", "1"]) == 0
    assert main(["average", str(run), "--newest", "1", "-o", str(tmp_path / "newest")]) == 0
    assert main(["export", str(run), "-o", str(tmp_path / "last")]) == 0
    assert (run / "model.safetensors").read_bytes() == (run / "average.safetensors").read_bytes()
    assert (tmp_path / "newest").read_bytes() == (tmp_path / "last").read_bytes()
    assert (tmp_path / "newest.units.txt").exists()


def test_an_average_of_several(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["average", str(run), "--newest", "3"]) == 0
    counts = sorted(int(path.name) for path in (run / "checkpoints").iterdir())[-3:]
    each = [weights_at(run, count, tmp_path / "one") for count in counts]
    found = load_file(run / "average.safetensors")
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        mean = sum(one[name].double() for one in each) / 3
        assert torch.equal(tensor, mean.float()), name
    assert yaml.safe_load((run / "average.config.yaml").read_text())["checkpoints"] == counts


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["export", "RUN", "--at", "9"], 2, "at is 9, but no checkpoint is there; there are 8, "),
        (["export", "RUN", "--best", "wer", "-o", "s3://bucket/x"], 2, "it must be a path of this machine"),
        (["export", "NOWHERE"], 1, "is no complete checkpoint"),
        (["average", "RUN"], 2, "it does not say which checkpoints to take. Give one of --best N"),
        (
            ["average", "RUN", "--best", "1", "--newest", "1"],
            2,
            "it does not say which checkpoints to take. Give one of --best N",
        ),
        (["average", "RUN", "--newest", "2", "--by", "wer"], 2, "it does not say which checkpoints to take"),
        (["export", "RUN", "--at", "8", "--best", "loss"], 2, "best is loss. Give one of the two."),
        (["export", "RUN", "-o", "/dev/null"], 2, "it must name a file"),
        (["export", "RUN", "-o", "."], 2, "it must name a file"),
        (["export", "RUN", "-o", "RUN/"], 2, "it must name a file"),
        (["average", "RUN", "--best", "0"], 2, "it must be at least 1"),
        (["average", "RUN", "--best", "9"], 2, "have a loss on validation data. Ask for fewer"),
        (["average", "RUN", "--newest", "9"], 2, "checkpoints. Keep more: --keep"),
        (["checkpoints", "NOWHERE"], 1, "there are no checkpoints. Name a run's folder"),
        (["checkpoints", "s3://me:word@bucket/x"], 2, "'s3://bucket/x', but it came with a user name"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    done: Path, tmp_path: Path, arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"RUN": str(done), "RUN/": f"{done}/", "NOWHERE": str(tmp_path / "nowhere")}
    assert main([names.get(argument, argument) for argument in arguments]) == code
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1


def test_a_run_at_a_url(
    done: Path, tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = use_bucket(s3_endpoint, monkeypatch)
    upload(s3_endpoint, url, done / "checkpoints")
    assert main(["checkpoints", url, "--verify"]) == 0
    assert main(["export", url]) == 2
    assert "a URL is no folder to write to" in capsys.readouterr().err
    assert main(["export", url, "-o", str(tmp_path / "model.safetensors")]) == 0
    assert main(["export", f"{url}/{24:012d}", "-o", str(tmp_path / "one.safetensors")]) == 0
    assert main(["export", str(done), "-o", str(tmp_path / "here.safetensors")]) == 0
    here = (tmp_path / "here.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == here
    assert (tmp_path / "one.safetensors").read_bytes() == here


def test_a_checkpoint_of_format_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(task_model.SIZES, "tiny", task_model.Size(width=8, layers=1, heads=2, hidden=8, kernel=3))
    folder = tmp_path / "run" / "checkpoints" / f"{12:012d}"
    shutil.copytree(PAST / "checkpoint", folder)
    assert main(["checkpoints", str(tmp_path / "run"), "--verify"]) == 0
    assert table(capsys)[1][:4] == ["12", "-", "-", "3"]
    assert main(["export", str(tmp_path / "run")]) == 0
    assert main(["export", str(folder), "-o", str(tmp_path / "one")]) == 0
    found = load_file(tmp_path / "run" / "model.safetensors")
    units = yaml.safe_load((tmp_path / "run" / "model.config.yaml").read_text())["units"]
    CTCModel("tiny", units).load_state_dict(found, strict=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()
