"""What earlier versions wrote goes on: datasets, states and checkpoints, bit for bit."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_state_dict

from shardpipe import ShardLoader
from shardpipe.dataset import verify
from shardpipe.train.cli import _parser, main
from shardpipe.train.config import TrainConfig
from shardpipe.train.engines import World
from shardpipe.train.logs.display import Display
from shardpipe.train.run import open_run
from shardpipe.train.task import model
from tests.past.recording import FLAGS, batches_after, hashes_of
from tests.training import given, markers, one_thread

PAST = Path(__file__).parents[1] / "past"
VERSIONS = [path.parent for path in sorted(PAST.glob("*/expected.json"))]
RUNS = [(version, run) for version in VERSIONS for run in json.loads((version / "expected.json").read_bytes())["runs"]]


def expected(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((version / "expected.json").read_bytes())
    return found


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def run_folder(version: Path, tmp_path: Path) -> Path:
    """A run's folder with nothing in it but the checkpoint of that version."""
    count = json.loads((version / "checkpoint" / "checkpoint.json").read_bytes())["consumed_samples"]
    shutil.copytree(version / "checkpoint", tmp_path / "run" / "checkpoints" / f"{count:012d}")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """As small as the one that the checkpoints are of."""
    monkeypatch.setitem(model.SIZES, "tiny", model.Size(width=8, layers=1, heads=2, hidden=8, kernel=3))


def test_there_is_a_past() -> None:
    assert PAST / "0.1.0" in VERSIONS


def test_datasets_are_whole_and_the_same(version: Path) -> None:
    found = verify(version / "data")
    assert found.ok, found.problems
    state = ShardLoader(version / "data", batch_size=1).state_dict()
    assert state["fingerprint"] == expected(version)["fingerprint"]


@pytest.mark.parametrize(("version", "name"), RUNS, ids=[f"{version.name}, {name}" for version, name in RUNS])
def test_states_are_followed_by_the_same_batches(version: Path, name: str) -> None:
    run = expected(version)["runs"][name]
    assert batches_after(version / "data", run) == run["batches"]


def is_setting(name: str) -> bool:
    return ".param_groups." in name and ".params." not in name


def test_checkpoints_load_the_same_tensors(version: Path, run_folder: Path) -> None:
    settings = _parser().parse_args(["--data", str(version / "data"), "--out", str(run_folder), *FLAGS]).as_dict()
    del settings["config"]
    world = World(rank=0, size=1, device=torch.device("cpu"))
    with one_thread(), open_run(TrainConfig(**settings), world, Display(quiet=True), began=time.monotonic()) as run:
        model_state, optimizer_state = get_state_dict(run.learner.model, run.learner.optimizer)
        found = hashes_of({"model": model_state, "optimizer": optimizer_state})
    saved = expected(version)["tensors"]
    # How fast and how strictly to learn is for the run to say, and not for the checkpoint; torch has new words for it.
    learned = [{name for name in names if not is_setting(name)} for names in (found, saved)]
    assert learned[0] == learned[1]
    hashes = {name: value for name, value in saved.items() if len(value) == 64}
    assert len(hashes) > 100
    assert {name: found[name] for name in hashes} == hashes


def test_runs_go_on_with_the_same_samples(version: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one_thread():
        assert main(["--data", str(version / "data"), "--out", str(run_folder), *FLAGS]) == 0
    assert "going on at sample 12 of 30" in capsys.readouterr().err
    assert given(run_folder) == expected(version)["keys"]
    assert {marker["loader"]["format"] for marker in markers(run_folder).values()} == {1}, "its steps have no size"


def test_runs_may_take_steps_of_a_size_from_then_on(version: Path, run_folder: Path) -> None:
    size = ["--batches-per-step", "2", "--save-every", "1steps"]
    with one_thread():
        assert main(["--data", str(version / "data"), "--out", str(run_folder), *FLAGS, *size]) == 0
    assert {marker["loader"]["batches_per_step"] for marker in markers(run_folder).values()} == {2}
    keys = [record["keys"] for record in expected(version)["keys"]]
    assert [record["keys"] for record in given(run_folder)] == keys
